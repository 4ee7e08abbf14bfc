"""Answers have the format that their questions ask for, and cost other questions nothing."""

import dataclasses
import json

import numpy as np
import pytest

from tests.compilations import compilations
from tests.engine.formats import (
    CHOICES,
    FORMATS,
    SCHEMA,
    formatted,
    formatted_questions,
    has_format,
    masked_at_every_step,
    model_logprobs,
)
from tests.engine.random_questions import expected, random_question
from tests.engine.test_cancelling import ask_and_cancel, wait_until_idle
from tests.engine.test_orders import ask
from vipllava_jax.engine.answer_format import AnswerFormat
from vipllava_jax.engine.question import QuestionError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = AnswerFormat('regex', '([a-z]+[ ,.]){12,}[a-z]+')


@pytest.fixture(scope='module')
def engine(start):
    with start() as engine:
        yield engine


@pytest.mark.parametrize('answer_format', FORMATS, ids=lambda found: found.kind)
@pytest.mark.parametrize('text', ['What is it?', 'Where is the old sofa?'])
def test_greedy_answers_are_those_of_a_mask_at_every_step(engine, small_model, answer_format, text):
    question = formatted(answer_format, text)
    (answer,) = engine.submit(question).result(60)
    assert list(answer.ids) == masked_at_every_step(small_model, question)
    assert answer.finish_reason == 'stop'
    assert has_format(answer.text, answer_format)


def test_answers_have_their_formats_in_any_order_beside_others(engine):
    """All are those of a lone question."""
    rng = np.random.default_rng(0)
    asked = [*formatted_questions(15), *(random_question(rng, 60) for _ in range(6))]
    wanted = [expected(engine.submit(question).result(60)) for question in asked]
    with compilations('') as compiled:
        for _ in range(2):
            order = rng.permutation(len(asked))
            replies = ask(engine, [asked[n] for n in order], rng)
            for n, reply in zip(order, replies, strict=True):
                assert expected(reply.result(120)) == wanted[n], asked[n]
    assert not compiled
    for question, answers in zip(asked[:15], wanted[:15], strict=True):
        for answer in answers:
            assert answer.finish_reason == 'stop'
            assert has_format(answer.text, question.answer_format)
    stats = engine.stats()
    assert (stats.compilations, stats.failed) == (0, 0)
    assert stats.rollbacks > 100


def test_the_pieces_of_an_answer_are_its_text(engine):
    reply = engine.submit(formatted(SCHEMA))
    pieces = [*reply]
    (answer,) = reply.result(0)
    assert ''.join(piece.text for piece in pieces) == answer.text
    assert [id for piece in pieces for id in piece.ids] == list(answer.ids)
    assert len(pieces) > 5


def test_an_answer_ends_neither_before_nor_after_its_format_allows(engine):
    ends = engine.model.cfg.eos
    eager = formatted(AnswerFormat('regex', 'a{3,5}'), logit_bias=dict.fromkeys(ends, 100.0))
    never = formatted(AnswerFormat('regex', 'a{3,5}'), suppress_tokens=ends)
    (first,), (second,) = (engine.submit(question).result(60) for question in (eager, never))
    assert (first.text, first.finish_reason, first.ids[-1] in ends) == ('aaa', 'stop', True)
    assert (second.text, second.finish_reason, second.ids[-1] in ends) == ('aaaaa', 'stop', False)


@pytest.mark.parametrize('most', [1, 2, 7, 40])
def test_an_answer_that_reaches_its_limit_is_a_beginning(engine, most):
    question = formatted(SCHEMA)
    (whole,) = engine.submit(question).result(60)
    settings = dataclasses.replace(question.settings, max_new_tokens=most)
    (part,) = engine.submit(dataclasses.replace(question, settings=settings)).result(60)
    assert part.ids == whole.ids[:most]
    assert part.finish_reason == ('length' if most < len(whole.ids) else 'stop')


def test_log_probabilities_are_those_of_the_model(engine, small_model):
    question = formatted(SCHEMA, logprobs=2)
    reply = engine.submit(question)
    (answer,) = reply.result(60)
    wanted = model_logprobs(small_model, reply.question.ids, answer.ids)
    found = [report.logprob for report in answer.logprobs]
    np.testing.assert_allclose(found, wanted[range(len(found)), answer.ids], atol=1e-4)
    likeliest = [report.top_logprobs[0] for report in answer.logprobs]
    np.testing.assert_allclose(likeliest, wanted.max(axis=-1), atol=1e-4)
    assert min(found) < max(likeliest) - 1


@pytest.mark.parametrize('letter', ['y', 's'])
@pytest.mark.parametrize('kind', [{}, {'temperature': 1.0, 'seed': 0}], ids=['greedy', 'sampled'])
def test_settings_that_exclude_every_allowed_token_are_an_error(engine, letter, kind):
    """Of the first token, and of a later one."""
    vocabulary = engine.model.processor.tokenizer.backend.get_vocab()
    suppressed = [id for token, id in vocabulary.items() if letter in token]
    suppressed.append(engine.model.processor.tokenizer.token_to_id(f'<0x{ord(letter):02X}>'))
    reply = engine.submit(formatted(AnswerFormat('choice', ('yes',)), suppress_tokens=suppressed, **kind))
    with pytest.raises(QuestionError, match='the settings exclude every token'):
        reply.result(60)
    assert engine.submit(formatted(FORMATS[1])).result(60)


def test_a_format_that_cannot_be_used_is_refused_at_once(engine):
    with pytest.raises(QuestionError, match='unclosed group'):
        engine.submit(formatted(AnswerFormat('regex', '(')))
    with pytest.raises(QuestionError, match='the answer format is'):
        engine.submit(formatted({'type': 'json_object'}))


def test_answers_that_outgrow_their_rows_keep_their_format(engine):
    """They are moved to wider rows, or wait for such a row and go on there, from where they were."""
    words = 'what is the old red sofa ' * 7
    kinds = ({}, {'temperature': 1.0}, {'temperature': 1.0, 'no_repeat_ngram_size': 3})
    asked = [formatted(LONG, f'{words}{n}', seed=n, max_new_tokens=60, **kinds[n % 3]) for n in range(6)]
    wanted = [expected(engine.submit(question).result(60)) for question in asked]
    replies = [engine.submit(question) for question in asked]
    for reply, answers in zip(replies, wanted, strict=True):
        assert expected(reply.result(60)) == answers
        (answer,) = answers
        assert reply.prompt_tokens < engine.shapes.slots < reply.prompt_tokens + len(answer.ids)
        assert set(answer.text) <= set('abcdefghijklmnopqrstuvwxyz ,.')


def test_a_cancelled_answer_frees_its_rows(engine):
    endless = formatted(AnswerFormat('json_object'), max_new_tokens=380, temperature=1.0, seed=1)
    replies = [engine.submit(endless) for _ in range(6)]
    next(iter(replies[0]))
    for reply in replies:
        reply.cancel()
    wait_until_idle(engine)
    assert engine._scheduler.rows.free() == [rows for rows, _ in engine.shapes.levels]
    assert engine.submit(formatted(FORMATS[2])).result(60)[0].text in CHOICES


def test_answers_that_are_cancelled_at_any_moment_disturb_no_others(engine):
    rng = np.random.default_rng(2)
    asked = [*formatted_questions(10), *(random_question(rng, 60) for _ in range(5))]
    wanted = [expected(engine.submit(question).result(60)) for question in asked]
    for _ in range(2):
        ask_and_cancel(engine, asked, wanted, rng)
    wait_until_idle(engine)
    assert engine._scheduler.rows.free() == [rows for rows, _ in engine.shapes.levels]


def test_objects_are_json_or_end_at_the_limit(engine):
    reply = engine.submit(
        formatted(AnswerFormat('json_object'), temperature=1.0, seed=5, num_return_sequences=3)
    )
    for answer in reply.result(60):
        assert answer.text.startswith('{')
        if answer.finish_reason == 'stop':
            assert isinstance(json.loads(answer.text), dict)


def test_a_format_that_is_too_complex_costs_its_question_alone(engine):
    large = {'type': 'object', 'properties': {f'p{n}': {'type': 'string'} for n in range(900)}}
    other = engine.submit(formatted(SCHEMA))
    reply = engine.submit(formatted(AnswerFormat('json_schema', large)))
    with pytest.raises(QuestionError, match='too complex'):
        reply.result(60)
    assert other.result(60)
