"""Generation compiles three variants, greedy, sampled and with processors, and nothing for other values."""

import pytest

import vipllava_jax as vj
from tests.rows import ragged
from vipllava_jax.generation.programs import decode_chunk, prefill_batch
from vipllava_jax.generation.setting_checks import NUMBERS

# Two values of each number of a row, and two lists of one bucket.
VALUES = {
    'max_new_tokens': [2, 9],
    'min_new_tokens': [3, 5],
    'max_time': [50.0, 60.0],
    'temperature': [0.0, 1.5],
    'top_k': [3, 500],
    'top_p': [0.4, 0.9],
    'min_p': [0.1, 0.5],
    'typical_p': [0.4, 0.9],
    'epsilon_cutoff': [0.1, 0.2],
    'eta_cutoff': [0.1, 0.2],
    'top_h': [0.3, 0.8],
    'repetition_penalty': [0.5, 1.3],
    'presence_penalty': [-0.5, 1.3],
    'frequency_penalty': [-0.5, 1.3],
    'no_repeat_ngram_size': [2, 5],
    'length_penalty': [0.5, 2.0],
    'seed': [1, 2],
}
OTHERS = {
    'bad_words_ids': [[[1]], [[i] for i in range(8)]],
    'sequence_bias': [{(1,): 0.5}, {(i,): -float('inf') for i in range(8)}],
    'logit_bias': [{1: 0.5}, dict.fromkeys(range(8), 2.0)],
    'suppress_tokens': [[1], range(8)],
    'begin_suppress_tokens': [[1], range(8)],
    'forced_eos_token_id': [7, range(8)],
    'exponential_decay_length_penalty': [(1, 1.1), ([0, 1, 2], [1.0, 1.2, 0.5])],
    'remove_invalid_values': [True],
    'renormalize_logits': [True],
    'early_stopping': [True, 'never'],
    'eos': [4, range(8)],
}


@pytest.fixture
def run(params, cfg, rng):
    """Generates with some settings -> the number of prefills and of chunks that have been compiled."""
    batch = ragged(cfg, rng, [(9, 2), (4, 0), (15, 1)], T=32)

    def run(**settings):
        vj.generate(params, batch, cfg=cfg, **{'max_new_tokens': 9, **settings})
        return prefill_batch._cache_size(), decode_chunk._cache_size()

    return run


@pytest.mark.slow
def test_three_variants_exist_and_other_values_compile_nothing(run):
    prefill_batch.clear_cache()
    decode_chunk.clear_cache()
    assert run() == (1, 1)
    for fields in (
        {'min_new_tokens': 0},
        {'repetition_penalty': [1, 1, 1], 'top_p': 0.5, 'suppress_tokens': []},
    ):
        assert run(**fields) == (1, 1)
    assert run(temperature=1.0) == (2, 2)
    for name in ('seed', 'top_k', 'top_p', 'min_p'):
        a, b = VALUES[name]
        assert run(temperature=[0, 1, 2], **{name: [a, b, a]}) == (2, 2), name
    assert run(repetition_penalty=1.2) == (3, 3)
    assert VALUES.keys() == NUMBERS.keys()
    for name, (a, b) in VALUES.items():
        for value in (a, [a, b, a]):
            assert run(**{'repetition_penalty': 1.2, 'temperature': [1, 0, 1], name: value}) == (3, 3), name
    for name, values in OTHERS.items():
        for value in values:
            assert run(**{'repetition_penalty': 1.2, name: value}) == (3, 3), name


@pytest.mark.slow
def test_a_list_of_another_bucket_is_another_variant(run):
    def compiled(**settings):
        before = run(suppress_tokens=[1])
        return run(**settings)[1] - before[1]

    assert compiled(suppress_tokens=range(9)) == 1
    assert compiled(suppress_tokens=range(16)) == 0
    assert compiled(sequence_bias=[[[1, 2, 3], 1.0]]) == 1
    assert compiled(sequence_bias=[[[1, 2, 3, 4], 1.0]]) == 0
