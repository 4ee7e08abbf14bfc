"""A plan checks settings against the batch and the model, and says where each of the answers ends."""

from types import SimpleNamespace

import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import ragged
from vipllava_jax import pods
from vipllava_jax.generation.plan import make_plan, with_seed
from vipllava_jax.generation.rows import of_first_process
from vipllava_jax.generation.setting_checks import NUMBERS
from vipllava_jax.inputs.processor import Processor

ROWS = [(9, 2), (4, 0), (15, 1)]


@pytest.fixture
def planned(cfg, rng):
    batch = ragged(cfg, rng, ROWS, T=32)

    def run(processor=None, **settings):
        return make_plan({}, batch, cfg, vj.GenerationSettings(**settings), processor)

    return run


def test_the_answers_to_a_prompt_end_as_its_settings_say(planned, folder):
    settings = dict(max_new_tokens=[5, 6, 7], max_time=[1, 2, 3], seed=[7, 8, 9], temperature=1.0)
    chosen = planned(Processor.load(folder), stop=['a stop'], num_return_sequences=2, **settings)
    assert chosen.ends.limits.tolist() == [5, 5, 6, 6, 7, 7]
    assert chosen.ends.max_time.tolist() == [1, 1, 2, 2, 3, 3]
    assert len({*chosen.ends.row_stops}) == 6
    assert chosen.ends.reasons == [''] * 6
    assert [len(x) for x in (chosen.sampling.temperature, chosen.eos, chosen.batch.tokens)] == [3, 3, 3]


def test_an_answer_has_no_time_limit_unless_one_is_given(planned):
    assert np.isinf(planned().ends.max_time).all()


@pytest.mark.parametrize('logprobs', [None, 0, 1, 8, 9, 128])
def test_few_numbers_of_reported_tokens_are_compiled(planned, cfg, logprobs):
    assert (
        planned(logprobs=logprobs).top == {None: None, 0: 0, 1: 8, 8: 8, 9: 16, 128: cfg.text.vocab}[logprobs]
    )


def test_numbers_and_ids_that_the_vocabulary_lacks_are_refused(planned):
    for settings, message in [
        ({'logprobs': 129}, 'logprobs is 129, but the vocabulary has 128 tokens'),
        ({'suppress_tokens': [3, 128]}, 'suppress_tokens holds the id 128, but the vocabulary ends at 127'),
        ({'bad_words_ids': [[3], [4, 500]]}, 'bad_words_ids holds the id 500'),
        ({'logit_bias': {'200': 1}}, 'logit_bias holds the id 200'),
        ({'sequence_bias': {(1, 200): 1}}, 'sequence_bias holds the id 200'),
        ({'begin_suppress_tokens': 200}, 'begin_suppress_tokens holds the id 200'),
        ({'forced_eos_token_id': 200}, 'forced_eos_token_id holds the id 200'),
    ]:
        with pytest.raises(ValueError, match=message):
            planned(**settings)


@pytest.mark.parametrize('name', NUMBERS)
def test_numbers_of_another_number_of_rows_are_refused(planned, name):
    with pytest.raises(ValueError, match=rf'{name} has the shape \(2,\): give one number, or 3, one for'):
        planned(**{name: [0.5, 0.5] if 'cutoff' in name else [1, 1]})


@pytest.mark.parametrize('processor', [1, 'a folder'])
def test_a_processor_is_nothing_else(planned, processor):
    with pytest.raises(TypeError, match='processor is .*, expected the Processor model.processor'):
        planned(processor, stop='a')


def test_end_ids_may_be_many_or_none(planned, cfg):
    many = planned(eos=range(100), min_new_tokens=3)
    assert many.eos.shape == (3, 104)
    assert (many.processing.eos > 0).sum(axis=1).tolist() == [100] * 3
    none = planned(eos=(), min_new_tokens=3)
    assert not none.processing.eos.any()


def test_a_prompt_that_fills_the_context_leaves_room_for_nothing(cfg, rng):
    batch = ragged(cfg, rng, [(cfg.text.context - 2, 0), (4, 0)])
    assert batch.lengths[0] == cfg.text.context - 1
    assert make_plan({}, batch, cfg, vj.GenerationSettings(), None).ends.limits.tolist() == [1, 1]
    batch = ragged(cfg, rng, [(cfg.text.context - 1, 0), (4, 0)])
    with pytest.raises(ValueError, match='row 0: a prompt of 512 tokens .* of 512: shorten the prompt'):
        make_plan({}, batch, cfg, vj.GenerationSettings(), None)


def test_joined_processes_use_the_numbers_of_the_first(monkeypatch):
    monkeypatch.setattr(pods, 'from_first', lambda value: 7)
    several, one = SimpleNamespace(is_multi_process=True), SimpleNamespace(is_multi_process=False)
    assert of_first_process(3, several) == 7
    assert of_first_process(3, one) == of_first_process(3, None) == 3
    sampled = vj.GenerationSettings(temperature=1)
    assert with_seed(sampled, several).seed == 7
    assert with_seed(vj.GenerationSettings(temperature=1, seed=5), several).seed == 5
    assert with_seed(vj.GenerationSettings(), several).seed is None
    assert with_seed(sampled, one).seed != with_seed(sampled, one).seed
