"""The openai package, as it is, against the server with the demo model."""

import asyncio
import json

import openai
import pydantic
import pytest

from tests.serving.demo import KEY, NAME, chat, data_uri, encoded, image_part, mark_on, scene, user

pytestmark = pytest.mark.slow


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
        {
            'shape': 'mask contour',
            'polygon': [[10, 10], [90, 10], [50, 90]],
            'color': '#ff0000',
            'alpha': 128,
        },
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


@pytest.mark.parametrize('stream', [False, True])
def test_what_is_cropped_is_said(ask, stream):
    image = image_part()
    image['image_url']['url'] = data_uri(encoded(scene().resize((672, 336))))
    image |= {'fit': 'crop', 'visual_prompts': ['rectangle:2,100,60,200:red']}
    answer = ask('What is {mark}?', image, stream=stream)
    (warning,) = [*answer][-1].warnings if stream else answer.warnings
    assert 'rectangle:2,100,60,200:red' in warning


@pytest.mark.parametrize('name', ['max_tokens', 'max_completion_tokens'])
@pytest.mark.parametrize('count', [1, 5])
def test_limits_of_tokens(client, name, count):
    fields = {**chat(), 'max_tokens': openai.omit, name: count, 'extra_body': {'ignore_eos': True}}
    answer = client.chat.completions.create(**fields)
    assert answer.usage.completion_tokens == count
    assert answer.choices[0].finish_reason == 'length'


def test_a_seed_repeats_an_answer(text_of):
    several = [
        text_of(seed=seed, temperature=2.0, max_tokens=12, extra_body={'ignore_eos': True})
        for seed in (1, 1, 2, -1)
    ]
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
        'properties': {
            'kind': {'enum': ['star', 'ball']},
            'count': {'type': 'integer', 'minimum': 0, 'maximum': 9},
        },
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
        **{
            'image': image_part()['image_url']['url'],
            'regions': [mark_on(1, 0)['box'], mark_on(1, 1)['box']],
        },
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
                create(**chat(stream=True)),
                *(create(**chat(f'What is a {kind}?')) for kind in ('star', 'moon')),
            )
            pieces = [chunk.choices[0].delta.content or '' async for chunk in stream]
            assert ''.join(pieces) == answers[0].choices[0].message.content
            assert [model.id async for model in client.models.list()] == [NAME]
            with pytest.raises(openai.BadRequestError):
                await create(**chat(n=99))
            task = asyncio.create_task(create(**chat(extra_body={'ignore_eos': True}) | {'max_tokens': 300}))
            await asyncio.sleep(0.3)
            task.cancel()
        demo.wait(lambda: not demo.engine.stats().running)

    asyncio.run(main())
