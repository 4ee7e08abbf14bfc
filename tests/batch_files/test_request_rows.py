"""Rows in OpenAI's dialect: each is a request, and its line the response to it."""

import base64

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

import vipllava_jax as vj
from tests.batch_files.fakes import ReplyingEngine
from tests.engine.pictures import picture, png
from tests.weightless import weightless_model
from vipllava_jax.batch_files import questions
from vipllava_jax.batch_files.answers import answers
from vipllava_jax.engine.question import QuestionError

URI = 'data:image/png;base64,' + base64.b64encode(png(picture())).decode()
POINT = {'shape': 'point', 'point': [3, 4], 'color': 'lime'}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return weightless_model(tmp_path_factory.mktemp('processor'))


@pytest.fixture
def engine(model):
    with ReplyingEngine(model) as engine:
        yield engine


def row(id, url='/v1/chat/completions', **body):
    body = {'model': 'gpt-4o', **body}
    if url == '/v1/chat/completions':
        body.setdefault('messages', [{'role': 'user', 'content': f'What is {id}?'}])
    return {'custom_id': id, 'method': 'POST', 'url': url, 'body': body}


def with_picture(url):
    part = {'type': 'image_url', 'image_url': {'url': url}, 'visual_prompts': [POINT]}
    return [{'role': 'user', 'content': [part, {'type': 'text', 'text': 'What is {mark}?'}]}]


def test_every_request_has_a_response(engine):
    rows = [
        row('a'),
        row('b', '/v1/completions', prompt=['Once', 'Twice'], max_tokens=4),
        row(
            'c', '/v1/regions', image=URI, regions=[[1, 2, 30, 40], POINT, POINT], question='What is {mark}?'
        ),
    ]
    a, b, c = answers(engine, rows, ordered=True)
    assert {*a} == {'id', 'custom_id', 'response', 'error'}
    assert (a['custom_id'], a['error'], a['response']['status_code']) == ('a', None, 200)
    assert a['id'] == 'batch_req_' + a['response']['request_id']
    body = a['response']['body']
    ChatCompletion.model_validate(body, strict=True)
    assert body['id'] == 'chatcmpl-' + a['response']['request_id']
    assert body['model'] == 'gpt-4o'
    Completion.model_validate(b['response']['body'], strict=True)
    assert len(b['response']['body']['choices']) == 2
    assert [part['index'] for part in c['response']['body']['data']] == [0, 1, 2]
    assert len(engine.asked) == 6
    again = [*answers(engine, rows, ordered=True)]
    assert [line['id'] for line in again] == [a['id'], b['id'], c['id']]


def test_dialects_may_be_mixed(engine):
    rows = [{'prompt': 'Why?', 'custom_id': 'x'}, row('y'), {'question_id': 'z', 'text': 'Who?'}, row('w')]
    lines = [*answers(engine, rows, ordered=True)]
    assert [line.get('custom_id') for line in lines] == [None, 'y', None, 'w']
    assert [line['id'] for line in (lines[0], lines[2])] == ['line 1', 'z']
    assert lines[0]['row'] == {'custom_id': 'x'}


def test_pictures_are_data_or_paths(engine, tmp_path):
    picture().save(tmp_path / 'a.png')
    rows = [row(str(n), messages=with_picture(url)) for n, url in enumerate([URI, 'a.png'])]
    regions = {'image': 'a.png', 'regions': [[1, 2, 30, 40]], 'question': '{mark}?'}
    lines = [*answers(engine, [*rows, row('r', '/v1/regions', **regions)], images=tmp_path)]
    assert {line['response']['status_code'] for line in lines} == {200}
    assert [question.images for question in engine.asked] == [
        (base64.b64decode(URI.partition(',')[2]),),
        (tmp_path / 'a.png',),
        (tmp_path / 'a.png',),
    ]
    assert engine.asked[1].prompt[0].text == 'What is at the lime point?'
    for url, folder, message in [
        ('https://a.org/x.png', tmp_path, 'download the picture'),
        ('a.png', None, 'paths are not read here'),
    ]:
        (line,) = answers(engine, [row('a', messages=with_picture(url))], images=folder)
        assert line['response']['status_code'] == 400
        assert message in line['response']['body']['error']['message']


def test_the_batch_says_what_requests_do_not(engine):
    settings = vj.GenerationSettings(temperature=0.5, max_new_tokens=3, seed=1)
    rows = [row('a'), row('b'), row('c', temperature=0, seed=7, max_tokens=5)]
    [*answers(engine, rows, settings=settings)]
    a, b, c = (question.settings for question in engine.asked)
    assert (a.temperature, a.max_new_tokens) == (0.5, 3)
    assert a.seed != b.seed
    assert (c.temperature, c.max_new_tokens, c.seed) == (0.0, 5, 7)
    [*answers(engine, rows[1:2], settings=settings)]
    assert engine.asked[-1].settings.seed == b.seed


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'method': 'GET'}, '"method" is \'GET\', expected "POST"'),
        ({'method': None}, '"method" is None'),
        ({'url': '/v1/embeddings'}, '"url" is \'/v1/embeddings\': choose /v1/chat/completions'),
        ({'url': ['/v1/regions']}, '"url" is'),
        ({'body': 'x'}, '"body" is \'x\', expected an object'),
        ({'extra': 1}, "unknown field 'extra': a row has custom_id, method, url, body"),
    ],
)
def test_what_is_no_request_is_an_error(engine, changes, message):
    (line,) = answers(engine, [row('a') | changes])
    assert (line['custom_id'], line['response'], line['error']['code']) == ('a', None, 'invalid_row')
    assert message in line['error']['message']
    assert not engine.asked


@pytest.mark.parametrize(
    ('body', 'param', 'code'),
    [
        ({'stream': True}, 'stream', None),
        ({'n': 'x'}, 'n', None),
        ({'messages': None}, 'messages', None),
        ({'max_tokens': 5000}, 'max_tokens', 'context_length_exceeded'),
        ({'messages': with_picture('data:,x')}, 'messages[0].content[0].image_url.url', None),
    ],
)
def test_an_invalid_request_has_a_response_that_says_so(engine, body, param, code):
    (line,) = answers(engine, [row('a', **body)])
    assert (line['error'], line['response']['status_code']) == (None, 400)
    error = line['response']['body']['error']
    assert (error['type'], error['param'], error['code']) == ('invalid_request_error', param, code)


@pytest.mark.parametrize('id', ['', 5.5, None, True, 'x' * 1001])
def test_ids_are_strings(engine, id):
    (line,) = answers(engine, [row(id)])
    assert line['custom_id'] == 'line 1'
    assert (line['error'] is None) == (id is None)


def test_a_repeated_id_is_an_error(engine):
    first, second = answers(engine, [row('a'), row('a')], ordered=True)
    assert (first['custom_id'], second['custom_id']) == ('a', 'line 2')
    assert 'an earlier row has the same id' in second['error']['message']


def test_one_question_that_fails_is_the_response_and_cancels_the_others(model):
    def fails(question):
        return QuestionError('it is damaged') if 'two' in question.prompt[0].text else None

    with ReplyingEngine(model, fails=fails) as engine:
        prompts = ['one', 'two', *map(str, range(50))]
        (line,) = answers(engine, [row('a', '/v1/completions', prompt=prompts)])
        assert line['response']['status_code'] == 400
        assert line['response']['body']['error']['message'] == 'it is damaged'


def test_a_request_of_more_questions_than_the_queue_holds_is_answered(model):
    with ReplyingEngine(model, queue=3) as engine:
        rows = [row(str(n), '/v1/completions', prompt=['x'] * 20) for n in range(3)]
        lines = [*answers(engine, [*rows, row('last')])]
        assert {line['response']['status_code'] for line in lines} == {200}
        assert len(engine.asked) == 61


def test_missing_packages_are_named(engine, monkeypatch):
    monkeypatch.setattr(questions.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vipllava-jax\[serve\]'"):
        [*answers(engine, [row('a')])]
    assert len([*answers(engine, [{'prompt': 'Why?'}])]) == 1
