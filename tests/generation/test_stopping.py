"""A stop string ends the text, however the text is split into pieces."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models

import vipllava_jax as vj
from vipllava_jax.generation.stopping import AnswerEnds, StopCut, find_stop, stop_ids
from vipllava_jax.inputs.tokenizer import Tokenizer

texts = st.text('ab#', max_size=20)


def before_stop(pieces, stops):
    cut = StopCut(stops)
    return [*map(cut.push, pieces), cut.end()], cut.found


@given(st.lists(texts), st.lists(st.text('ab#', min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(pieces, stops):
    full_text = ''.join(pieces)
    found = find_stop(full_text, stops)
    expected = full_text if found is None else full_text[: found[0]]
    for split in (pieces, full_text):
        seen, stop = before_stop(split, stops)
        assert ''.join(seen) == expected
        assert stop == (full_text[slice(*found)] if found else '')
    if found:
        assert full_text[slice(*found)] in stops
        assert not any(stop in full_text[: found[1] - 1] for stop in stops)


def test_text_that_cannot_begin_a_stop_string_is_released_immediately():
    seen, stop = before_stop(['one #', ' two ##', '#', ' never'], ['###'])
    assert (seen, stop) == (['one ', '# two ', '', '', ''], '###')
    assert before_stop(['a', 'b'], []) == (['a', 'b', ''], '')
    assert before_stop(['a#'], ['##']) == (['a', '#'], '')


def test_answers_end_with_an_end_id_or_at_their_limit():
    ends = AnswerEnds(np.array([3, 6, 9]), eos=[2], pad=0)
    tokens = np.array([[7, 7, 7, 7], [7, 2, 7, 7], [7, 7, 7, 7]])
    np.testing.assert_array_equal(ends.push(tokens), [[7, 7, 7, 0], [7, 2, 0, 0], [7, 7, 7, 7]])
    assert not ends.all_ended
    np.testing.assert_array_equal(ends.push(tokens[:, :2])[:, 0], [0, 0, 7])
    np.testing.assert_array_equal(ends.push(tokens), [[0] * 4, [0] * 4, [7, 7, 7, 0]])
    assert ends.all_ended
    assert ends.lengths.tolist() == [3, 2, 9]
    assert ends.reasons == ['length', 'stop', 'length']


def test_an_end_id_at_the_limit_is_a_stop():
    ends = AnswerEnds(np.array([2]), eos=[2], pad=0)
    ends.push(np.array([[7, 2, 7]]))
    assert (ends.lengths.tolist(), ends.reasons) == ([2], ['stop'])


def test_a_stop_string_that_is_one_token_is_an_end_id(folder):
    model = vj.load(folder)
    settings = vj.GenerationSettings(stop=model.processor.stop_strings('hub'))
    token = model.processor.tokenizer.token_to_id('###')
    assert stop_ids(settings, model.processor) == (token,)
    assert stop_ids(vj.GenerationSettings(), None) == ()


@pytest.mark.parametrize(
    ('decoder', 'vocabulary', 'stops', 'ids'),
    [
        (
            decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]),
            ['<0x0A>', '▁Yes', 'Yes', '<end>'],
            ['<0x0A>', '▁Yes', 'Yes', '<end>', ' Yes'],
            (2, 3),
        ),
        (decoders.ByteLevel(), ['é', 'Ã©', 'a', '<end>'], ['é', 'Ã©', 'a', '<end>'], (2, 3)),
    ],
    ids=['bytes as tokens', 'bytes as letters'],
)
def test_the_name_of_a_token_is_no_stop_string_unless_it_spells_it(decoder, vocabulary, stops, ids):
    core = Core(models.BPE({token: id for id, token in enumerate(vocabulary)}, []))
    core.decoder = decoder
    core.add_special_tokens(['<end>'])
    processor = SimpleNamespace(tokenizer=Tokenizer(core, {}))
    assert stop_ids(vj.GenerationSettings(stop=stops), processor) == ids
