"""A chat becomes one question, and its reply what OpenAI's own client reads, streamed or not."""

import dataclasses
import io
import math
from concurrent.futures import CancelledError

import numpy as np
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from PIL import Image

from tests.protocol.bodies import HELLO, PNG, POINT, URI, chat, image, user
from vipllava_jax.engine.answer_format import AnswerFormat
from vipllava_jax.engine.pieces import TokenLogprobs
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.data_uris import decode_data_uri
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.protocol.chat import chat_exchange
from vipllava_jax.protocol.errors import ApiError

EOS = 2
ENTRIES = [TokenLogprobs(-0.5, (55, 56), (-0.5, -math.inf)), TokenLogprobs(-math.inf, (56, 2), (-1, -2)),
           TokenLogprobs(-0.25, (2, 3), (-0.25, -3))]  # fmt: skip


@pytest.fixture
def exchange(served):
    return lambda **fields: dataclasses.replace(chat_exchange(chat(**fields), served, 'abc'), created=7)


def streamed(exchange, replies):
    """All events, as a server sends them."""
    pieces = [(n, reply, piece) for n, reply in enumerate(replies) for piece in reply]
    events = [event for place in pieces for event in exchange.events(*place)]
    return [*exchange.opening(), *events, *exchange.closing(replies)]


def test_a_request_is_a_question(served):
    request = chat(
        messages=[user('What is {mark}?', image(visual_prompts=[POINT], fit='pad'))],
        max_tokens=5,
        temperature=0.5,
        n=2,
        template='hub',
        return_image=True,
        priority=-3,
        response_format={'type': 'json_object'},
        stream=True,
    )
    exchange = chat_exchange(request, served, 'abc')
    (question,) = exchange.questions
    assert question.prompt == [Turn('user', 'What is at the lime point?\n<image>')]
    assert question.images == (PNG,)
    assert question.marks == (Mark('point', point=(3, 4), color='lime'),)
    assert question.settings == GenerationSettings(max_new_tokens=5, temperature=0.5, num_return_sequences=2)
    assert (question.template, question.fit, question.id) == ('hub', 'pad', 'abc')
    assert (question.answer_format, question.priority, question.keep_images) == (
        AnswerFormat('json_object'),
        -3,
        True,
    )
    assert (exchange.id, exchange.model, exchange.stream) == ('chatcmpl-abc', 'vip', True)
    assert exchange.created > 1_700_000_000


def test_the_whole_response(exchange, reply_to):
    exchange = exchange(messages=HELLO)
    reply = reply_to(exchange.questions[0], [55, 56, EOS])
    (answer,) = reply.result()
    body = exchange.body([reply])
    assert body == {
        'id': 'chatcmpl-abc',
        'object': 'chat.completion',
        'created': 7,
        'model': 'vip',
        'choices': [
            {
                'index': 0,
                'message': {'role': 'assistant', 'content': answer.text, 'refusal': None},
                'logprobs': None,
                'finish_reason': 'stop',
            }
        ],
        'usage': {
            'prompt_tokens': answer.prompt_tokens,
            'completion_tokens': 3,
            'total_tokens': answer.prompt_tokens + 3,
            'prompt_tokens_details': {'cached_tokens': 5},
        },
    }
    assert answer.text
    ChatCompletion.model_validate(body, strict=True)


def test_streamed_text_is_that_of_the_whole_response(exchange, reply_to):
    fields = {'n': 2, 'temperature': 1, 'max_tokens': 4, 'stream_options': {'include_usage': True}}
    exchange = exchange(stream=True, **fields)
    reply = reply_to(exchange.questions[0], [55, 56, EOS], [60, 61, 62, 63])
    body, events = exchange.body([reply]), streamed(exchange, [reply])
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
    assert [event['choices'][0]['delta'] for event in events[:2]] == [
        {'role': 'assistant', 'content': ''}
    ] * 2
    assert [event['choices'][0]['index'] for event in events[:2]] == [0, 1]
    assert all(event['usage'] is None for event in events[:-1])
    assert (events[-1]['choices'], events[-1]['usage']) == ([], body['usage'])
    for n, reason in enumerate(['stop', 'length']):
        choices = [event['choices'][0] for event in events[:-1] if event['choices'][0]['index'] == n]
        text = ''.join(choice['delta'].get('content', '') for choice in choices)
        assert text == body['choices'][n]['message']['content']
        assert [choice['finish_reason'] for choice in choices if choice['finish_reason']] == [reason]
        assert choices[-1]['finish_reason'] == reason


def test_without_usage_the_last_event_has_the_reason(exchange, reply_to):
    exchange = exchange(stream=True)
    reply = reply_to(exchange.questions[0], [55, EOS])
    events = streamed(exchange, [reply])
    assert events[-1]['choices'][0]['finish_reason'] == 'stop'
    assert not any('usage' in event for event in events)


def test_pieces_that_show_nothing_are_no_events(exchange, reply_to):
    exchange = exchange(stream=True)
    reply = reply_to(exchange.questions[0], [2], [])
    (piece,) = reply
    assert exchange.events(0, reply, piece._replace(finish_reason='')) == []


def test_log_probabilities(exchange, reply_to):
    exchange = exchange(logprobs=True, top_logprobs=2)
    (question,) = exchange.questions
    assert question.settings.logprobs == 2
    reply = reply_to(question, [55, 56, EOS], entries=ENTRIES)
    body = exchange.body([reply])
    ChatCompletion.model_validate(body, strict=True)
    content = body['choices'][0]['logprobs']['content']
    assert len(content) == 2  # without the end
    assert bytes(content[0]['bytes']).decode() == content[0]['token']
    assert content[0]['top_logprobs'][0] == {key: content[0][key] for key in ('token', 'bytes', 'logprob')}
    assert (content[0]['logprob'], content[0]['top_logprobs'][1]['logprob']) == (-0.5, -9999.0)
    assert content[1]['logprob'] == -9999.0
    assert (
        bytes(byte for entry in content for byte in entry['bytes']).decode().strip() == reply.result()[0].text
    )
    events = streamed(exchange, [reply])
    chunks = [event['choices'][0]['logprobs'] for event in events]
    assert [entry for chunk in chunks if chunk for entry in chunk['content']] == content
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)


def test_only_the_tokens_themselves_have_log_probabilities(exchange, reply_to):
    exchange = exchange(logprobs=True)
    reply = reply_to(exchange.questions[0], [55, EOS], entries=[TokenLogprobs(-1.0), TokenLogprobs(-2.0)])
    (entry,) = exchange.body([reply])['choices'][0]['logprobs']['content']
    assert (entry['logprob'], entry['top_logprobs']) == (-1.0, [])


def test_what_the_model_saw_and_warnings(exchange, reply_to):
    exchange = exchange(messages=[user(image(), image(), 'What?')], return_image=True)
    reply = reply_to(exchange.questions[0], [55, EOS])
    reply.images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    reply.warnings = ('the crop cuts off a mark',)
    body = exchange.body([reply])
    assert body['warnings'] == ['the crop cuts off a mark']
    picture = body['choices'][0]['message']['image']
    shown = np.asarray(Image.open(io.BytesIO(decode_data_uri(picture, 'image'))))
    assert (shown == np.concatenate([*reply.images], axis=1)).all()
    events = streamed(exchange, [reply])
    assert events[-1]['choices'][0]['delta']['image'] == picture
    assert events[-1]['warnings'] == body['warnings']
    assert not any('warnings' in event for event in events[:-1])
    ChatCompletion.model_validate(body, strict=True)


def test_the_error_of_a_reply_is_raised(exchange, reply_to):
    exchange = exchange()
    reply = reply_to(exchange.questions[0], [55])
    with pytest.raises(TimeoutError):
        exchange.body([reply])
    reply.cancel()
    with pytest.raises(CancelledError):
        exchange.body([reply])


@pytest.mark.parametrize(
    ('fields', 'status', 'param', 'code'),
    [
        ({'model': 'gpt-4'}, 404, 'model', 'model_not_found'),
        ({'top_logprobs': 3}, 400, 'top_logprobs', None),
        ({'logprobs': True, 'top_logprobs': 21}, 400, 'top_logprobs', None),
        ({'n': 2}, 400, 'n', None),
        ({'max_tokens': 1020}, 400, 'max_tokens', 'context_length_exceeded'),
        ({'messages': [user('x y ' * 2000)]}, 400, 'messages', 'context_length_exceeded'),
        ({'messages': [user('x' * 300_000)]}, 400, 'messages', 'context_length_exceeded'),
        ({'template': 'nothing'}, 400, 'template', None),
        ({'template': 'checkpoint'}, 400, 'template', None),
        ({'messages': [user(image(URI[:-3]))]}, 400, 'messages[0].content[0].image_url.url', None),
    ],
)
def test_refused(served, fields, status, param, code):
    with pytest.raises(ApiError) as caught:
        chat_exchange(chat(**fields), served, 'abc')
    error = caught.value
    assert (error.status, error.param, error.code) == (status, param, code)
