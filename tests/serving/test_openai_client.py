"""The openai package, as it is, against the server with the demo model."""

import asyncio
import json

import openai
import pydantic
import pytest

from tests.serving.demo import KEY, NAME, chat, image_part, mark_on, user

pytestmark = pytest.mark.slow
LONG = {'max_tokens': 300, 'extra_body': {'ignore_eos': True}}  # for seconds


@pytest.fixture(scope='session')
def client(demo):
    with openai.OpenAI(base_url=f'http://127.0.0.1:{demo.port}/v1', api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope='session')
def ask(client):
    """Asks a question, by default without a picture."""
    return lambda *parts, **fields: client.chat.completions.create(**chat(*parts, **fields))


@pytest.fixture(scope='session')
def text_of(ask):
    """The text of the first answer."""
    return lambda *parts, **fields: ask(*parts, **fields).choices[0].message.content


def streamed(chunks) -> dict[int, str]:
    """The texts of a stream, by the index of their choice."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, '') + (choice.delta.content or '')
    return texts


def test_an_answer_has_all_fields(ask):
    answer = ask('What is in the picture?', image_part())
    (choice,) = answer.choices
    assert (answer.object, answer.model, answer.id[:9]) == ('chat.completion', NAME, 'chatcmpl-')
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, 'stop', 'assistant')
    assert choice.message.content
    assert choice.logprobs is None
    usage = answer.usage
    assert usage.prompt_tokens > 169 > usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_beginning_of_a_prompt_is_computed_once(ask):
    for cached in (False, True):
        usage = ask('Is there a star?', image_part(7)).usage
        assert (usage.prompt_tokens_details.cached_tokens > 160) == cached


@pytest.mark.parametrize(
    'messages',
    [
        [{'role': 'user', 'content': 'What is a star?'}],
        [{'role': 'system', 'content': 'Be short.'}, {'role': 'user', 'content': 'What is a star?'}],
        [{'role': 'developer', 'content': 'Be short.'}, user('What is a star?')],
        [user('Hello'), {'role': 'assistant', 'content': 'Hello.'}, user('What is a star?')],
        [user('Is it red?', image_part()), {'role': 'assistant', 'content': 'no'}, user('Is it blue?')],
        [{'role': 'user', 'content': [*user('What is it?')['content'], image_part()]}],
        [user('Are they alike?', image_part(1), image_part(2))],
        [user('Is it red?', image_part(1)), {'role': 'assistant', 'content': 'no'}, user('?', image_part(2))],
        [{'role': 'user', 'content': 'Wie heißt das? 星 ⭐ ﷽ \u202e'}],
    ],
    ids=['text', 'system', 'developer', 'turns', 'turns about one', 'image last', 'two', 'later', 'unicode'],
)
def test_conversations(client, messages):
    answer = client.chat.completions.create(model=NAME, messages=messages, max_tokens=8)
    assert answer.choices[0].message.content is not None


@pytest.mark.parametrize(
    'mark',
    [
        mark_on(3),
        'ellipse:60,60,200,200:lime',
        {'shape': 'point', 'point': [0.5, 0.5], 'units': 'fractions', 'color': 'blue'},
        {'shape': 'mask contour', 'polygon': [[10, 10], [90, 10], [50, 90]], 'color': '#ff0000', 'alpha': 128},
        {'shape': 'arrow', 'box': [100, 100, 160, 160], 'width': 3},
    ],
    ids=['object', 'text', 'fractions', 'polygon', 'arrow'],
)
def test_marks_are_drawn_and_named(ask, text_of, mark):
    answer = ask('What is {mark}?', image_part(3, mark), extra_body={'return_image': True})
    assert answer.choices[0].message.image.startswith('data:image/png;base64,')
    assert answer.choices[0].message.image != (
        ask('What?', image_part(3), extra_body={'return_image': True}).choices[0].message.image
    )


def test_marks_on_two_pictures(text_of):
    images = image_part(1, mark_on(1)), image_part(2, mark_on(2, color='lime'))
    assert text_of('Is the object {mark1} larger than the one {mark2}?', *images)


def test_what_is_cropped_is_said(ask):
    wide = image_part()
    wide['fit'] = 'crop'
    assert not hasattr(ask('What is it?', wide), 'warnings')
    marked = image_part(1, {'shape': 'point', 'point': [400, 10]})
    with pytest.raises(openai.BadRequestError, match='400'):
        ask('What is it?', marked)


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


@pytest.mark.parametrize('name', ['max_tokens', 'max_completion_tokens'])
@pytest.mark.parametrize('count', [1, 5])
def test_limits_of_tokens(client, name, count):
    fields = {**chat(), 'max_tokens': openai.omit, name: count, 'extra_body': {'ignore_eos': True}}
    answer = client.chat.completions.create(**fields)
    assert answer.usage.completion_tokens == count
    assert answer.choices[0].finish_reason == 'length'


def test_a_seed_repeats_an_answer(text_of):
    several = [text_of(seed=seed, temperature=2.0, **LONG | {'max_tokens': 12}) for seed in (1, 1, 2, -1)]
    assert several[0] == several[1]
    assert len({*several}) > 1


@pytest.mark.parametrize(
    'fields',
    [
        {'temperature': 0.7, 'top_p': 0.9},
        {'presence_penalty': 1.5, 'frequency_penalty': -1.5},
        {'user': 'someone', 'metadata': {'a': 'b'}},
        {'extra_body': {'top_k': 5, 'min_p': 0.1, 'repetition_penalty': 1.2, 'temperature': 1}},
        {'extra_body': {'min_tokens': 4, 'bad_words': ['star'], 'priority': -1}},
        {'extra_body': {'stop_token_ids': [2, 5], 'template': 'plain'}},
        {'response_format': {'type': 'text'}, 'n': 1, 'tools': [], 'tool_choice': 'none'},
        {'service_tier': 'auto', 'store': False, 'parallel_tool_calls': False},
    ],
    ids=['sampling', 'penalties', 'user', 'vllm', 'least', 'ends', 'defaults', 'openai'],
)
def test_settings_are_taken(ask, fields):
    assert ask(**fields).choices[0].finish_reason in ('stop', 'length')


def test_a_bias_forbids_a_token(client, ask):
    reply = ask(logprobs=True, top_logprobs=1)
    first = reply.choices[0].logprobs.content[0].token
    ids = client.post('/../tokenize', cast_to=object, body={'prompt': first, 'add_special_tokens': False})
    biased = ask(logit_bias={str(id): -100 for id in ids['tokens']}, logprobs=True)
    assert biased.choices[0].logprobs.content[0].token != first


class Verdict(pydantic.BaseModel):
    is_round: bool
    color: str = pydantic.Field(max_length=8)


def test_an_answer_follows_a_schema(text_of):
    schema = {
        'type': 'object',
        'properties': {'kind': {'enum': ['star', 'ball']}, 'count': {'type': 'integer', 'minimum': 0, 'maximum': 9}},
        'required': ['kind', 'count'],
        'additionalProperties': False,
    }
    described = {'type': 'json_schema', 'json_schema': {'name': 'thing', 'schema': schema, 'strict': True}}
    found = json.loads(text_of('What?', image_part(), response_format=described, max_tokens=64))
    assert found['kind'] in ('star', 'ball')
    assert isinstance(found['count'], int)


def test_an_answer_is_parsed(client):
    fields = chat('Describe it.', image_part(), max_tokens=200)
    answer = client.chat.completions.parse(**fields, response_format=Verdict)
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def test_an_object_of_json(ask):
    choice = ask('Describe it.', response_format={'type': 'json_object'}, max_tokens=48).choices[0]
    assert choice.message.content.lstrip().startswith('{')
    assert choice.finish_reason == 'length' or isinstance(json.loads(choice.message.content), dict)


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


@pytest.mark.parametrize(
    ('fields', 'param'),
    [
        ({'temperature': 'hot'}, 'temperature'),
        ({'temperature': 3}, 'temperature'),
        ({'messages': []}, 'messages'),
        ({'messages': [{'role': 'robot', 'content': 'x'}]}, 'messages[0].role'),
        ({'messages': [{'role': 'user', 'content': None}]}, 'messages[0].content'),
        ({'messages': [user('What is {mark}?')]}, 'messages[0].content[0].text'),
        ({'n': 17}, 'n'),
        ({'n': 2, 'temperature': 0}, 'n'),
        ({'stop': [*'abcde']}, 'stop'),
        ({'max_tokens': 10_000}, 'max_tokens'),
        ({'max_tokens': 0}, 'max_tokens'),
        ({'top_logprobs': 2}, 'top_logprobs'),
        ({'logit_bias': {'x': 1}}, 'logit_bias'),
        ({'tools': [{'type': 'function', 'function': {'name': 'f', 'parameters': {}}}]}, 'tools'),
        ({'modalities': ['text', 'audio']}, 'modalities'),
        ({'extra_body': {'use_beam_search': True}}, 'use_beam_search'),
        ({'extra_body': {'adapter': 'other'}}, 'adapter'),
        ({'extra_body': {'template': 'none'}}, 'template'),
        ({'extra_body': {'structured_outputs': {'choice': []}}}, 'structured_outputs.choice'),
    ],
)
def test_invalid_requests_name_the_field(ask, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(**fields)
    assert error.value.param == param
    assert error.value.type == 'invalid_request_error'
    assert error.value.request_id


def test_a_wrong_key(client):
    for call in (client.with_options(api_key='other').models.list, client.with_options(api_key='é').models.list):
        with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
            call()


def test_an_unknown_model(client, ask):
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve('other')
    assert error.value.code == 'model_not_found'
    with pytest.raises(openai.NotFoundError):
        ask(model='gpt-4o')
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input='x')


def test_a_full_server(demo, client, ask):
    body = json.dumps(chat(max_tokens=300, ignore_eos=True)).encode()
    others = [demo.connect() for _ in range(8)]
    for other in others:
        other.sendall(request_bytes(body, HEAD.format(len(body))))
    demo.wait(lambda: demo.server.open == 8)
    with pytest.raises(openai.RateLimitError) as error:
        ask()
    assert error.value.response.headers['retry-after'] == '1'
    for other in others:
        other.close()
    demo.wait(lambda: not demo.server.open)
    assert client.with_options(max_retries=2).chat.completions.create(**chat())


def test_a_draining_server(demo, ask, monkeypatch):
    monkeypatch.setattr(demo.server, 'is_draining', True)
    with pytest.raises(openai.InternalServerError) as error:
        ask()
    assert (error.value.status_code, error.value.code) == (503, 'shutting_down')


def test_a_timeout_frees_the_row(demo, client):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(**{**chat(), **LONG})
    demo.wait(lambda: not demo.engine.stats().running)


def test_a_stream_that_is_left_frees_the_row(demo, ask):
    with ask(stream=True, **LONG) as stream:
        next(iter(stream))
        assert demo.engine.stats().running == 1
    demo.wait(lambda: not demo.engine.stats().running)


def test_fields_without_effect_are_named(client):
    raw = client.chat.completions.with_raw_response.create(
        **chat(extra_body={'unknown': 1, 'messages_': [], 'seed': None}), reasoning_effort='low'
    )
    assert {*raw.headers['x-ignored-fields'].split(', ')} == {'unknown', 'messages_', 'reasoning_effort'}
    assert raw.parse().choices[0].message.content
    plain = client.chat.completions.with_raw_response.create(**chat(), extra_headers={'x-request-id': 'mine'})
    assert 'x-ignored-fields' not in plain.headers
    assert (plain.request_id, plain.parse().id) == ('mine', 'chatcmpl-mine')


def test_models(client):
    (model,) = client.models.list()
    assert (model.id, model.object, model.max_model_len) == (NAME, 'model', 512)
    assert client.models.retrieve(NAME) == model


@pytest.mark.parametrize('prompt', ['A star is', ['A star is', 'A ball is']])
def test_completions(client, prompt):
    fields = {'model': NAME, 'prompt': prompt, 'max_tokens': 6}
    whole = client.completions.create(**fields, logprobs=2)
    texts = [choice.text for choice in whole.choices]
    assert len(texts) == (1 if isinstance(prompt, str) else 2)
    assert len(whole.choices[0].logprobs.top_logprobs[0]) == 2
    found = dict.fromkeys(range(len(texts)), '')
    for chunk in client.completions.create(**fields, stream=True):
        found[chunk.choices[0].index] += chunk.choices[0].text
    assert [*found.values()] == texts


def test_regions(client):
    body = {
        **{'model': NAME, 'question': 'What is {mark}?', 'max_tokens': 8, 'mode': 'together'},
        **{'image': image_part()['image_url']['url'], 'regions': [mark_on(1, 0)['box'], mark_on(1, 1)['box']]},
    }
    found = client.post('/regions', cast_to=object, body=body)
    assert [entry['index'] for entry in found['data']] == [0, 1]
    assert all(entry['answer'] for entry in found['data'])


def test_an_asynchronous_client(demo):
    async def main() -> None:
        base = f'http://127.0.0.1:{demo.port}/v1'
        async with openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
            create = client.chat.completions.create
            stream, *answers = await asyncio.gather(
                create(**chat(stream=True)), *(create(**chat(f'What is a {kind}?')) for kind in ('star', 'moon'))
            )
            pieces = [chunk.choices[0].delta.content or '' async for chunk in stream]
            assert ''.join(pieces) == answers[0].choices[0].message.content
            assert [model.id async for model in client.models.list()] == [NAME]
            with pytest.raises(openai.BadRequestError):
                await create(**chat(n=99))
            task = asyncio.create_task(create(**{**chat(), **LONG}))
            await asyncio.sleep(0.3)
            assert demo.engine.stats().running == 1
            task.cancel()
        demo.wait(lambda: not demo.engine.stats().running)

    asyncio.run(main())
