"""Prompts become questions without a template, and their replies text completions."""

import dataclasses

import pytest
from openai.types import Completion

from tests.protocol.bodies import completion
from vipllava_jax.engine.pieces import TokenLogprobs
from vipllava_jax.protocol.completions import completion_exchange
from vipllava_jax.protocol.errors import ApiError

EOS = 2


@pytest.fixture
def exchange(served):
    return lambda **fields: dataclasses.replace(
        completion_exchange(completion(**fields), served, 'abc'), created=7
    )


def test_prompts_are_questions_without_a_template(exchange, served):
    found = exchange(prompt=['Once', 'upon {mark}'], max_tokens=3, priority=2)
    processor = served.model.processor
    for question, prompt in zip(found.questions, ['Once', 'upon {mark}'], strict=True):
        assert processor.encode(question.prompt, 0, question.template) == processor.tokenizer.encode(prompt)
        assert (question.settings.max_new_tokens, question.priority) == (3, 2)
    assert exchange().questions[0].settings.max_new_tokens == 16


def test_the_whole_response_and_the_streamed_one(exchange, reply_to):
    exchange = exchange(
        prompt=['Once', 'Twice'], n=2, temperature=1, max_tokens=3, stream_options={'include_usage': True}
    )
    samples = [[55, 56, EOS], [60, 61, 62]], [[70, EOS], [71, 72, 73]]
    replies = [reply_to(question, *ids) for question, ids in zip(exchange.questions, samples, strict=True)]
    body = exchange.body(replies)
    Completion.model_validate(body, strict=True)
    assert [choice['index'] for choice in body['choices']] == [0, 1, 2, 3]
    assert [choice['finish_reason'] for choice in body['choices']] == ['stop', 'length', 'stop', 'length']
    assert body['choices'][3]['text'] == replies[1].result()[1].text
    assert body['usage']['completion_tokens'] == 11
    assert body['usage']['prompt_tokens'] == sum(reply.prompt_tokens for reply in replies)
    events = [
        event
        for n, reply in enumerate(replies)
        for piece in reply
        for event in exchange.events(n, reply, piece)
    ]
    events = [*exchange.opening(), *events, *exchange.closing(replies)]
    assert events[-1]['usage'] == body['usage']
    for choice in body['choices']:
        own = [part for event in events for part in event['choices'] if part['index'] == choice['index']]
        assert ''.join(part['text'] for part in own) == choice['text']
        assert own[-1]['finish_reason'] == choice['finish_reason']
    for event in events[:-1]:
        Completion.model_validate(event, strict=False)


def test_log_probabilities_have_offsets(exchange, reply_to):
    exchange = exchange(logprobs=1)
    entries = [TokenLogprobs(-n, (n + 50,), (-n,)) for n in range(1, 4)]
    reply = reply_to(exchange.questions[0])
    for n, id in enumerate([55, 56, EOS]):
        reply.push(0, [id], 0.0, [entries[n]])
    found = exchange.body([reply])
    Completion.model_validate(found, strict=True)
    logprobs = found['choices'][0]['logprobs']
    assert logprobs['token_logprobs'] == [-1, -2]
    assert logprobs['text_offset'] == [0, len(logprobs['tokens'][0])]
    assert [[*top.values()] for top in logprobs['top_logprobs']] == [[-1, -1], [-2, -2]]
    assert [next(iter(top)) for top in logprobs['top_logprobs']] == logprobs['tokens']
    parts = [event['choices'][0]['logprobs'] for piece in reply for event in exchange.events(0, reply, piece)]
    for name in logprobs:
        assert [value for part in parts for value in part[name]] == logprobs[name]


def test_the_token_itself_has_a_log_probability_among_the_likeliest(exchange, reply_to):
    exchange = exchange(logprobs=0)
    reply = reply_to(exchange.questions[0], [55, EOS], entries=[TokenLogprobs(-1.0), TokenLogprobs(-2.0)])
    logprobs = exchange.body([reply])['choices'][0]['logprobs']
    assert logprobs['top_logprobs'] == [{logprobs['tokens'][0]: -1.0}]


@pytest.mark.parametrize(
    ('fields', 'param', 'code'),
    [
        ({'prompt': ' '}, 'prompt', None),
        ({'prompt': ['x', '']}, 'prompt[1]', None),
        ({'prompt': 'a <image>'}, 'prompt', None),
        ({'prompt': ['x'] * 65}, 'prompt', None),
        ({'logprobs': 21}, 'logprobs', None),
        ({'n': 2}, 'n', None),
        ({'prompt': ['x', 'x y ' * 2000]}, 'prompt[1]', 'context_length_exceeded'),
        ({'max_tokens': 1024}, 'max_tokens', 'context_length_exceeded'),
        ({'max_completion_tokens': 1024}, 'max_completion_tokens', 'context_length_exceeded'),
    ],
)
def test_refused(served, fields, param, code):
    with pytest.raises(ApiError) as caught:
        completion_exchange(completion(**fields), served, 'abc')
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
