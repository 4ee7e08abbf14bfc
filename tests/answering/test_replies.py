"""Replies are the text of generated ids up to a stop string, for each row of a batch."""

import dataclasses
import itertools

import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax import GenerationSettings
from vipllava_jax.answering import beam_stream
from vipllava_jax.answering import replies as replies_module
from vipllava_jax.answering.replies import Reply, replies, with_template_stops
from vipllava_jax.generation.decoding import stream
from vipllava_jax.inputs.processor import Processor

QUESTIONS = ['What?', 'Who is it?', 'Why?']
SETTINGS = GenerationSettings(max_new_tokens=24, temperature=2.0, seed=1)


@pytest.fixture(scope='module')
def model(folder):
    return vj.load(folder)


@pytest.fixture(scope='module')
def out(model):
    return vj.generate(model.params, model.processor(QUESTIONS), cfg=model.cfg, settings=SETTINGS)


def rows(model, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    settings = with_template_stops(settings, model.processor, 'vipllava')
    return replies(model, model.processor(QUESTIONS), settings)


def test_texts_equal_the_decoded_tokens(model, out):
    answers = rows(model)
    assert [reply.text() for reply in answers] == model.processor.decode(out)
    assert [reply.finished for reply in answers] == out.finished.tolist()
    for reply, tokens, n in zip(answers, out.tokens, out.lengths, strict=True):
        assert reply.tokens == tokens[:n].tolist()


def test_replies_can_be_read_in_any_order(model, out):
    answers = rows(model)
    pieces = [next(iter(reply)) for reply in answers]
    texts = model.processor.decode(out)
    assert all(text.startswith(piece) for text, piece in zip(texts, pieces, strict=True))
    assert [reply.text() for reply in reversed(rows(model))] == texts[::-1]


def test_replies_can_be_read_together(model, out):
    limits = [5, 24, 17]
    answers = rows(model, max_new_tokens=limits)
    pieces = itertools.zip_longest(*answers, fillvalue='')  # a piece of each in turn
    texts = [''.join(several).strip() for several in zip(*pieces, strict=True)]
    assert texts == [reply.text() for reply in rows(model, max_new_tokens=limits)]
    assert [len(reply.tokens) for reply in answers] == np.minimum(out.lengths, limits).tolist()


def test_pieces_join_to_the_text(model):
    reply = rows(model)[1]
    assert len(pieces := [*reply]) > 1
    assert ''.join(pieces) == rows(model)[1].text()


def test_white_space_before_a_stop_string_is_no_part_of_the_answer(model, monkeypatch):
    monkeypatch.setattr(Reply, '_pieces', lambda self: iter(self.given))
    for given, text, kept in (
        (['a', ' ', '\n', 'b  #c'], 'a \nb', 'a \nb  #'),
        (['a ', '#'], 'a', 'a #'),
        ([' ', '#'], '', '#'),
        (['a b '], 'a b', 'a b'),
    ):
        for keep_stop, expected in ((False, text), (True, kept)):
            reply = rows(model, stop='#', keep_stop=keep_stop)[0]
            reply.given, reply.decoded = given, ''.join(given)
            assert ''.join(reply).removeprefix(' ') == expected
            assert reply.text() == expected


def test_a_stop_string_ends_a_reply(model, monkeypatch):
    full = rows(model)[0].text()
    stop = full[4:6]
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (stop,))
    reply, other, _ = rows(model)
    assert reply.text() == full.split(stop)[0].strip()
    assert reply.finished
    assert other.text()
    (kept, *_) = rows(model, keep_stop=True)
    assert kept.text() == full[: full.find(stop) + 2]
    decoded = model.processor.decode(reply.tokens)
    assert stop in decoded
    assert stop not in model.processor.decode(reply.tokens[:-1])


def test_no_more_tokens_are_generated_than_a_reply_needs(model, monkeypatch):
    streams = []

    def kept(*args, **settings):
        streams.append(stream(*args, **settings))
        return streams[-1]

    full = rows(model)[0].text()
    monkeypatch.setattr(replies_module, 'stream', kept)
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (full[0],))
    assert rows(model, max_new_tokens=200)[0].text() == ''
    assert streams[0].generation().tokens.shape[1] <= 24


def test_a_reply_that_reaches_the_maximum_is_not_finished(model):
    reply = rows(model, max_new_tokens=1)[0]
    reply.text()
    report = reply.report()
    assert (report['new_tokens'], report['finished'], report['tokens_per_second']) == (1, False, None)
    assert report['prompt_tokens'] == model.processor(QUESTIONS).lengths[0]
    assert report['first_token_seconds'] >= 0


def test_the_end_id_ends_a_reply_and_is_its_last_token(model, out):
    end = int(out.tokens[0, 5])
    reply = rows(model, eos=end)[0]
    first = int(np.argmax(out.tokens[0] == end))
    assert reply.text() == model.processor.decode(out.tokens[0, :first])
    assert (reply.finished, reply.tokens[-1], len(reply.tokens)) == (True, end, first + 1)


def test_each_row_can_have_its_own_maximum(model):
    answers = rows(model, max_new_tokens=[3, 9, 1])
    assert [reply.text() != '' or reply.tokens for reply in answers]
    assert [len(reply.tokens) for reply in answers if not reply.finished] == [3, 9, 1]


def test_the_samples_of_a_prompt_are_replies_that_follow_one_another(model):
    several = dataclasses.replace(SETTINGS, num_return_sequences=2, logprobs=2)
    batch = model.processor(QUESTIONS)
    out = vj.generate(model.params, batch, cfg=model.cfg, settings=several)
    answers = replies(model, batch, several)
    texts = [reply.text() for reply in answers]
    assert texts == model.processor.decode(out)
    assert texts[::2] == [reply.text() for reply in rows(model)]
    assert len({*texts}) == 6
    assert [reply.prompt_tokens for reply in answers] == np.repeat(batch.lengths, 2).tolist()
    assert [reply.finish_reason for reply in answers] == [*out.finish_reasons]
    for reply, expected in zip(answers, out, strict=True):
        for found, array in zip(reply.generated()[3:7], expected[3:7], strict=True):
            np.testing.assert_array_equal(found, array)
            assert len(found) == len(reply.tokens)


def test_beams_are_searched_when_the_first_reply_is_read(model, out, monkeypatch):
    calls = []

    def search(params, batch, *, cfg, settings, processor, prefix):
        calls.append(settings)
        return dataclasses.replace(out, sequence_scores=np.float32([-1, -2, -3]))

    monkeypatch.setattr(beam_stream, 'generate', search)
    beams = dataclasses.replace(SETTINGS, num_beams=2)
    answers = replies(model, model.processor(QUESTIONS), beams)
    assert not calls
    assert [reply.text() for reply in answers] == model.processor.decode(out)
    assert calls == [beams]
    assert [reply.finish_reason for reply in answers] == [*out.finish_reasons]
    assert [reply.generated().sequence_score for reply in answers] == [-1, -2, -3]
    assert answers[0].report()['tokens_per_second'] is None
    with pytest.raises(ValueError, match='request at most'):
        replies(model, model.processor(QUESTIONS), dataclasses.replace(beams, max_new_tokens=5000))


@pytest.mark.slow
def test_beams_are_those_of_generate(model):
    beams = GenerationSettings(max_new_tokens=9, num_beams=3, num_return_sequences=2, logprobs=1)
    batch = model.processor(QUESTIONS)
    found = vj.generate(model.params, batch, cfg=model.cfg, settings=beams)
    answers = replies(model, batch, beams)
    assert [reply.text() for reply in answers] == model.processor.decode(found)
    for reply, expected in zip(answers, found, strict=True):
        assert reply.generated().sequence_score == expected.sequence_score
        assert (reply.tokens, reply.finish_reason) == (expected.tokens.tolist(), expected.finish_reason)


def test_time_ends_replies(model):
    answers = rows(model, max_new_tokens=200, max_time=1e-6, eos=())
    texts = [reply.text() for reply in answers]
    assert [reply.finish_reason for reply in answers] == ['time'] * 3
    assert not any(reply.finished for reply in answers)
    assert texts == [model.processor.decode(reply.tokens) for reply in answers]


def test_the_stops_of_a_template_are_added_to_the_settings(model):
    settings = with_template_stops(GenerationSettings(stop='x', seed=3), model.processor, 'hub')
    assert settings == GenerationSettings(stop=('x', '###'), seed=3)
    assert with_template_stops(settings, model.processor, 'vipllava') == settings
    assert with_template_stops(settings, model.processor, 'hub') == settings
