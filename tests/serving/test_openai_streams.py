"""Streams, log-probabilities, stop strings and formats by the openai package and the demo model."""

import pytest

from tests.serving.demo import chat, image_part

pytestmark = pytest.mark.slow


def streamed(chunks) -> dict[int, str]:
    """The texts of a stream, by the index of their choice."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, '') + (choice.delta.content or '')
    return texts


def test_a_stream(ask, text_of):
    question = 'What do you see from left to right?', image_part(2)
    chunks = [*ask(*question, stream=True)]
    assert {chunk.object for chunk in chunks} == {'chat.completion.chunk'}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == 'assistant'
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ['stop']
    assert streamed(chunks) == {0: text_of(*question)}


def test_a_stream_with_usage(ask):
    chunks = [*ask(stream=True, stream_options={'include_usage': True})]
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


def test_a_stream_of_several_answers(ask):
    fields = {'n': 3, 'temperature': 1.5, 'seed': 5}
    texts = [choice.message.content for choice in ask(**fields).choices]
    assert streamed(ask(**fields, stream=True)) == dict(enumerate(texts))
    assert len({*texts}) > 1


def test_the_helper_for_streams(client):
    fields = chat('What is a star?')
    with client.chat.completions.stream(**fields) as events:
        kinds = [event.type for event in events]
        assert kinds[-1] == 'content.done' or 'content.done' in kinds
        assert events.get_final_completion().choices[0].finish_reason == 'stop'


def test_streamed_logprobs_are_those_of_the_whole(ask):
    fields = {'logprobs': True, 'top_logprobs': 3}
    (whole,) = ask(**fields).choices
    pieces = [chunk.choices[0].logprobs for chunk in ask(**fields, stream=True)]
    tokens = [token for piece in pieces if piece for token in piece.content]
    assert [token.token for token in tokens] == [token.token for token in whole.logprobs.content]
    assert ''.join(token.token for token in tokens).strip() == whole.message.content
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert bytes(token.bytes).decode() == token.token
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-3)


def test_logprobs_without_the_likeliest(ask):
    assert ask(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize('stream', [False, True])
def test_a_stop_string_across_tokens(ask, text_of, stream):
    whole = text_of('What is a star?', logprobs=True)
    assert len(whole) > 8
    for stop in (whole[3:7], [whole[5:8], 'never'], 'never'):
        first = stop if isinstance(stop, str) else stop[0]
        expected = whole.partition(first)[0]
        answer = ask('What is a star?', stop=stop, stream=stream)
        assert (streamed(answer)[0] if stream else answer.choices[0].message.content) == expected


def test_a_stop_string_may_be_kept(text_of):
    whole = text_of()
    kept = text_of(stop=whole[3:7], extra_body={'include_stop_str_in_output': True})
    assert kept == whole.partition(whole[3:7])[0] + whole[3:7]


@pytest.mark.parametrize(
    ('asked', 'matches'),
    [
        ({'choice': ['yes', 'no', 'maybe so']}, ('yes', 'no', 'maybe so')),
        ({'regex': '[0-9]{3}'}, tuple(f'{n:03}' for n in range(1000))),
        ({'json': {'const': 7}}, ('7',)),
        ({'json': '{"enum": [true, null]}'}, ('true', 'null')),
    ],
    ids=['choice', 'regex', 'json', 'text'],
)
@pytest.mark.parametrize('stream', [False, True])
def test_structured_outputs(ask, asked, matches, stream):
    answer = ask(extra_body={'structured_outputs': asked}, stream=stream)
    assert (streamed(answer)[0] if stream else answer.choices[0].message.content) in matches
