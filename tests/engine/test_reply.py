"""A reply is written by one thread and read by others, in the order and up to the ends of its samples."""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipllava_jax import GenerationSettings
from vipllava_jax.answering.answer_text import AnswerText
from vipllava_jax.engine.pieces import Answer, Piece, TokenLogprobs
from vipllava_jax.engine.question import Question, QuestionError, encode
from vipllava_jax.engine.reply import PieceReader, Reply
from vipllava_jax.generation.stopping import AnswerEnds, RowStops

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def new(model):
    def new(**fields):
        question = encode(Question('What?', settings=GenerationSettings(**fields)), model)
        return Reply(question, model.processor)

    return new


def in_thread(work):
    """Starts work in a thread -> a function that waits for its result or error."""
    results = []

    def run():
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def finish():
        thread.join(20)
        return results[0]

    return finish


def write(reply, sample, parts):
    for part in parts:
        reply.push(sample, part, time.perf_counter())


@st.composite
def chunks(draw):
    ids = draw(st.lists(st.one_of(st.integers(2, 397), st.sampled_from([13, 35, 290])), max_size=40))
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=8))
    parts = []
    while ids:
        size = sizes[len(parts) % len(sizes)]
        parts.append(ids[:size])
        ids = ids[size:]
    return parts


@settings(max_examples=200, deadline=None)
@given(chunks(), st.integers(1, 40), st.lists(st.sampled_from(['e', 'th', '##']), max_size=2), st.booleans())
def test_ends_and_text_are_those_of_static_generation(model, parts, limit, stop, keep_stop):
    chosen = GenerationSettings(max_new_tokens=limit, stop=stop, keep_stop=keep_stop)
    reply = Reply(encode(Question('What?', settings=chosen), model), model.processor)
    stops = [RowStops(model.processor, stop)] if stop else []
    ends = AnswerEnds(np.array([limit]), (2,), 399, stops, stop_ids=reply.question.stop_ids)
    kept = []
    for part in parts:
        tokens = ends.push(np.array([part]))
        kept += tokens[0, : ends.lengths[0] - len(kept)].tolist()
        assert reply.push(0, part, time.perf_counter()) == ends.reasons[0]
    reply.cancel()
    assert reply.cancelled == (not ends.reasons[0])
    text = AnswerText(model.processor, (2,), chosen)
    expected = text.push(kept) + text.end()
    reader = PieceReader(reply)
    pieces = reader.available() if kept else []
    assert [id for piece in pieces for id in piece.ids] == kept
    if ends.reasons[0]:
        assert ''.join(piece.text for piece in pieces) == expected
        assert reply.result() == (Answer(expected, tuple(kept), ends.reasons[0], len(reply.question.ids), 0),)
    with pytest.raises(CancelledError) if reply.cancelled else pytest.raises(StopIteration):
        next(reader)


def test_pieces_of_all_samples_arrive_while_they_are_written(new):
    reply = new(temperature=1, num_return_sequences=3, max_new_tokens=60)
    read = in_thread(lambda: [*reply])
    result = in_thread(reply.result)
    parts = [[n + 50, n + 60, n + 70] for n in range(20)]
    writers = [in_thread(lambda sample=sample: write(reply, sample, parts)) for sample in range(3)]
    for finish in writers:
        finish()
    pieces, answers = read(), result()
    assert len(pieces) == 60
    for sample, answer in enumerate(answers):
        own = [piece for piece in pieces if piece.sample == sample]
        assert [piece.ids for piece in own] == [*map(tuple, parts)]
        assert ''.join(piece.text for piece in own) == answer.text
        assert answer.finish_reason == 'length'
    assert [*reply] == pieces  # each iteration begins with the first piece
    assert reply.result(0) == answers


def test_a_reader_waits_and_a_result_may_time_out(new):
    reply = new()
    with pytest.raises(TimeoutError, match='still running'):
        reply.result(0.05)
    read = in_thread(lambda: next(iter(reply)))
    reply.push(0, [55], time.perf_counter())
    assert read().ids == (55,)
    assert reply.push(0, [56, 2, 57], time.perf_counter()) == 'stop'
    assert reply.push(0, [58], time.perf_counter()) == 'stop'
    (answer,) = reply.result(1)
    assert answer.ids == (55, 56, 2)


@pytest.mark.parametrize('wait', [lambda reply: [*reply], Reply.result])
def test_an_error_reaches_the_readers_after_the_pieces_before_it(new, wait):
    reply = new()
    waiting = in_thread(lambda: wait(reply))
    reply.push(0, [55], time.perf_counter())
    error = QuestionError('broken')
    reply.fail(error)
    reply.fail(ValueError('later'))
    assert waiting() is error
    assert reply.push(0, [56], time.perf_counter()) == 'cancelled'
    reader = iter(reply)
    assert next(reader).ids == (55,)
    with pytest.raises(QuestionError, match='broken'):
        next(reader)
    assert reply.times.finished is not None
    assert not reply.cancelled


def test_cancelling_ends_a_reply_once(new):
    reply = new()
    waiting = in_thread(reply.result)
    reply.cancel()
    assert isinstance(waiting(), CancelledError)
    assert reply.cancelled
    assert reply.push(0, [55], time.perf_counter()) == 'cancelled'
    done = new()
    done.push(0, [2], time.perf_counter())
    done.cancel()
    done.fail(ValueError('late'))
    assert not done.cancelled
    assert done.result()[0].ids == (2,)


def test_a_callback_hears_of_every_change(new):
    reply = new(max_new_tokens=3)
    heard, reader = [], PieceReader(reply)
    reply.on_progress(lambda: heard.append(reader.available()))
    assert heard == []
    write(reply, 0, [[55], [56, 57]])
    assert [[piece.ids for piece in pieces] for pieces in heard] == [[(55,)], [(56, 57)]]
    assert reply.done
    late = []
    reply.on_progress(lambda: late.append(PieceReader(reply).available()))
    assert [piece.ids for piece in late[0]] == [(55,), (56, 57)]


def test_a_callback_that_fails_cancels_the_reply(new):
    reply = new()

    def fail():
        raise RuntimeError('the event loop is closed')

    reply.on_progress(fail)
    assert reply.push(0, [55], time.perf_counter()) == ''
    assert reply.cancelled


def test_time_counts_from_the_start_of_the_answer(new):
    reply = new(max_time=10)
    reply.times.submitted -= 100
    reply.started(7, 5)
    begin = reply.times.started
    assert reply.push(0, [55], begin + 9) == ''
    assert reply.push(0, [56], begin + 10) == 'time'
    (answer,) = reply.result()
    assert (answer.prompt_tokens, answer.cached_tokens, answer.finish_reason) == (7, 5, 'time')
    assert (reply.times.first_token, reply.times.finished) == (begin + 9, begin + 10)


def test_log_probabilities_follow_their_ids(new):
    reply = new(logprobs=1, max_new_tokens=3)
    entries = [TokenLogprobs(-n, (n,), (-n,)) for n in range(4)]
    reply.push(0, [55], time.perf_counter(), entries[:1])
    reply.push(0, [56, 57, 58], time.perf_counter(), entries[1:])
    assert [piece.logprobs for piece in reply] == [tuple(entries[:1]), tuple(entries[1:3])]
    assert reply.result()[0].logprobs == tuple(entries[:3])


def test_a_tokenizer_that_fails_ends_only_this_reply(new, monkeypatch):
    reply = new(stop='##')

    def fail(*args):
        raise ValueError('the tokenizer fails')

    monkeypatch.setattr(RowStops, 'push', fail)
    assert reply.push(0, [55], time.perf_counter()) == 'cancelled'
    with pytest.raises(ValueError, match='the tokenizer fails'):
        reply.result()


def test_pieces_without_text_are_yielded_for_their_ids(new):
    reply = new()
    reply.push(0, [2], time.perf_counter())
    assert [*reply] == [Piece(0, '', (2,), None, 'stop')]
