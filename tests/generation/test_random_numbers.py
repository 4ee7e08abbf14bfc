"""The tokens of a row depend on its prompt, settings, key and positions, and on nothing else."""

import numpy as np
import pytest

import vipllava_jax as vj
from tests.generation.test_meshes import on_mesh
from tests.rows import ragged
from vipllava_jax.generation import decoding

ROWS = [(9, 2), (4, 0), (15, 1)]
VARIANTS = {  # lists hold the settings of each row
    'greedy': {'seed': [1, 2, 3]},
    'sampled': {'seed': [4, 2**32 - 1, 4], 'temperature': [1.5, 0.7, 1.1], 'top_k': [0, 40, 9]},
    'processed': {
        'logprobs': 2,
        'seed': [4, 9, 4],
        'temperature': [1.5, 0, 1.1],
        'top_p': 0.95,
        'min_p': 0.001,
        'typical_p': [0.9, 1, 0.95],
        'top_h': [0.9, 0.8, 0.95],
        'epsilon_cutoff': 1e-4,
        'eta_cutoff': 1e-4,
        'repetition_penalty': [1.3, 1.1, 1],
        'presence_penalty': [0, 0.4, 0.1],
        'frequency_penalty': [0.2, 0.1, 0],
        'no_repeat_ngram_size': [2, 3, 0],
        'bad_words_ids': ((7,), (8, 9, 10)),
        'sequence_bias': {(5, 6): 2.0},
        'logit_bias': {11: 1.5},
        'suppress_tokens': (12, 13),
        'begin_suppress_tokens': 14,
        'exponential_decay_length_penalty': (4, [1.1, 1.2, 1]),
        'forced_eos_token_id': 2,
        'min_new_tokens': [2, 0, 3],
        'renormalize_logits': True,
        'eos': (2, 20),
    },
}
SLOW = ('greedy', 'processed')


def of_rows(value, rows):
    """A setting for some of the rows."""
    if isinstance(value, tuple):
        return tuple(of_rows(part, rows) for part in value)
    return [value[row] for row in rows] if isinstance(value, list) else value


@pytest.fixture(
    scope='module', params=[pytest.param(v, marks=pytest.mark.slow if v in SLOW else ()) for v in VARIANTS]
)
def run(request, params, cfg):
    """Answers some rows of the batch with the settings of a variant of decoding."""
    batch = ragged(cfg, np.random.default_rng(0), ROWS, T=32)

    def answers(rows=(0, 1, 2), axes=None, generate=vj.generate, **changes):
        settings = {'eos': (), 'max_new_tokens': 20, **VARIANTS[request.param], **changes}
        settings = {name: of_rows(value, rows) for name, value in settings.items()}
        weights = on_mesh(params, axes) if axes else params
        part = vj.Batch(*(x[[*rows]] for x in batch))
        return generate(weights, part, cfg=cfg, **settings)

    answers.variant = request.param
    return answers


@pytest.fixture(scope='module')
def together(run):
    return run()


def check(out, expected, rows):
    for answer, row in zip(out, rows, strict=True):
        other = expected[row]
        np.testing.assert_array_equal(answer.tokens, other.tokens)
        assert answer.finish_reason == other.finish_reason
        if other.logprobs is not None:
            for name in ('logprobs', 'scores', 'top_logprobs'):
                np.testing.assert_allclose(getattr(answer, name), getattr(other, name), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_other_rows_and_their_order_change_nothing(run, together):
    for rows in ([2, 0, 1], [1, 1, 0], [0], [1], [2]):
        check(run(rows), together, rows)


def test_another_seed_changes_the_sampled_rows_alone(run, together):
    other = run(seed=[4, 5, 6])
    check(other[:1], together, [0])  # greedy, or the same seed
    changed = [not np.array_equal(a.tokens, b.tokens) for a, b in zip(other, together, strict=True)]
    # Row 1 of 'processed' has temperature 0.
    assert changed[1:] == [run.variant == 'sampled', run.variant != 'greedy']


def test_a_stream_yields_the_answers(run, together):
    pieces = [*(stream := run(generate=vj.stream))]
    assert [piece.shape[1] for piece in pieces[:2]] == [1, 8]
    np.testing.assert_array_equal(
        np.concatenate(pieces, axis=1)[:, : together.tokens.shape[1]], together.tokens
    )
    check(stream.generation(), together, range(3))


@pytest.mark.parametrize('size', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_size_of_a_chunk_changes_nothing(run, together, monkeypatch, size):
    monkeypatch.setattr(decoding, 'CHUNK', size)
    check(run(), together, range(3))


def test_the_first_of_several_samples_is_that_without_others(run, together):
    if run.variant == 'greedy':
        with pytest.raises(ValueError, match='at temperature 0 the 2 answers to a prompt would be equal'):
            run(num_return_sequences=2)
        return
    settings = {'num_return_sequences': 2, 'temperature': [1.5, 1.3, 1.1]}
    out, single = run(**settings), run(temperature=settings['temperature'])
    check(out[::2], single, range(3))
    assert all(not np.array_equal(a.tokens, b.tokens) for a, b in zip(out[1::2], single, strict=True))
    check(run([2, 0, 1], **settings), out, [4, 5, 0, 1, 2, 3])


@pytest.mark.parametrize(
    'axes',
    [
        pytest.param({'data': 2, 'tensor': 2}, marks=pytest.mark.slow),
        pytest.param({'data': 2}, marks=pytest.mark.by_hand),
        pytest.param({'tensor': 2}, marks=pytest.mark.by_hand),
    ],
    ids=str,
)
@pytest.mark.parametrize('run', ['processed'], indirect=True)
def test_a_mesh_changes_nothing(run, axes):
    settings = {'num_return_sequences': 2, 'temperature': [1.5, 1.3, 1.1]}
    check(run(axes=axes, **settings), run(**settings), range(6))
