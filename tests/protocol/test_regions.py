"""One question about each region, each on a picture of its own or with all marks on one."""

import dataclasses

import pytest

from tests.protocol.bodies import PNG, POINT, regions
from vipllava_jax.inputs.marks import COLORS, Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.protocol import regions as module
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.regions import regions_exchange

EOS = 2
BOX = [1, 2, 30, 40]
COCO = {'bbox': [1, 2, 29, 38], 'category_id': 3, 'segmentation': [[1, 2, 30, 2, 30, 40]]}
MASK = {'bbox': [0, 0, 9, 9], 'segmentation': {'size': [50, 60], 'counts': [0, 500, 2500]}}


@pytest.fixture
def exchange(served):
    return lambda **fields: dataclasses.replace(regions_exchange(regions(**fields), served, 'abc'), created=7)


def test_every_region_has_a_question_and_a_picture_of_its_own(exchange):
    found = exchange(regions=[BOX, 'ellipse:1,2,30,40:blue', POINT, COCO], seed=2**32 - 2, temperature=1)
    marks = [question.marks for question in found.questions]
    box = {'box': (1, 2, 30, 40)}
    assert marks == [
        (Mark('rectangle', units='pixel', **box),),
        (Mark('ellipse', color='blue', **box),),
        (Mark('point', point=(3, 4), color='lime'),),
        (Mark('rectangle', units='pixel', **box),),
    ]
    assert [question.prompt for question in found.questions] == [
        [Turn('user', f'What is {phrase}?')]
        for phrase in (
            'within the red rectangle',
            'within the blue ellipse',
            'at the lime point',
            'within the red rectangle',
        )
    ]
    assert all(question.images == (PNG,) for question in found.questions)
    assert [question.settings.seed for question in found.questions] == [2**32 - 2, 2**32 - 1, 0, 1]


def test_together_up_to_nine_are_marked_in_different_colours(exchange):
    found = exchange(regions=[BOX] * 11, mode='together', fit='pad')
    marks = [question.marks for question in found.questions]
    assert [len(of_question) for of_question in marks] == [9] * 9 + [2] * 2
    assert marks[0] == marks[8] != marks[9] == marks[10]
    assert [mark.color for mark in marks[0]] == [*COLORS]
    assert found.questions[1].prompt == [Turn('user', 'What is within the lime rectangle?')]
    assert found.questions[10].prompt == [Turn('user', 'What is within the lime rectangle?')]
    assert {question.fit for question in found.questions} == {'pad'}


def test_masks_are_outlines_of_shapes_that_have_them(exchange):
    (question,) = exchange(regions=[MASK], shape='mask').questions
    assert question.marks[0].polygon
    (question,) = exchange(regions=[MASK]).questions
    assert question.marks[0].polygon is None


def test_the_whole_response_and_the_streamed_one(exchange, reply_to):
    exchange = exchange(max_tokens=3, stream=True, stream_options={'include_usage': True})
    first, second = exchange.questions
    replies = [reply_to(first, [55, EOS]), reply_to(second, [60, 61, 62])]
    replies[1].warnings = ('cut off',)
    body = exchange.body(replies)
    texts = [reply.result()[0].text for reply in replies]
    assert body['data'] == [
        {'index': 0, 'answer': texts[0], 'finish_reason': 'stop'},
        {'index': 1, 'answer': texts[1], 'finish_reason': 'length'},
    ]
    assert (body['id'], body['object'], body['warnings']) == ('regions-abc', 'regions', ['cut off'])
    assert body['usage']['completion_tokens'] == 5
    events = [
        event for n in (1, 0) for piece in replies[n] for event in exchange.events(n, replies[n], piece)
    ]
    assert exchange.opening() == []
    assert [event['index'] for event in events] == [1, 0]
    for n, text in enumerate(texts):
        assert ''.join(event['delta'] for event in events if event['index'] == n) == text
    assert events[0]['warnings'] == ['cut off']
    (last,) = exchange.closing(replies)
    assert last['usage'] == body['usage']


@pytest.mark.parametrize(
    ('fields', 'status', 'param', 'message'),
    [
        ({'model': 'x'}, 404, 'model', 'there is no model'),
        ({'question': 'What is it?'}, 400, 'question', 'does not say which region'),
        ({'question': '{mark} and {mark2}?'}, 400, 'question', 'write {mark}'),
        ({'question': '<image> {mark}?'}, 400, 'question', 'stands for a picture'),
        ({'shape': 'star'}, 400, 'shape', "unknown shape 'star'"),
        ({'regions': [BOX] * 1025}, 400, 'regions', '1025 regions, expected at most 1024'),
        ({'regions': [BOX, [1, 2, 300, 40]]}, 400, 'regions[1]', 'lies outside'),
        ({'regions': [[1, 2, 3]]}, 400, 'regions[0]', 'a box has x1, y1, x2, y2'),
        ({'regions': [{'x': 1}]}, 400, 'regions[0]', "unknown field 'x'"),
        ({'regions': [{'bbox': [1, 2, 0, 3]}]}, 400, 'regions[0]', 'has no area'),
        ({'regions': ['2/point:1,1']}, 400, 'regions[0]', 'is on image 2'),
        (
            {'regions': [MASK | {'segmentation': {'size': [9, 9], 'counts': [81]}}], 'shape': 'mask'},
            400,
            'regions[0]',
            'has the size',
        ),
        (
            {'regions': [MASK | {'segmentation': {'size': [50, 60], 'counts': '~~~'}}], 'shape': 'mask'},
            400,
            'regions[0]',
            '',
        ),
        (
            {'regions': [MASK | {'segmentation': {'size': [50, 60], 'counts': [10**30]}}], 'shape': 'mask'},
            400,
            'regions[0]',
            '',
        ),
        ({'regions': [MASK | {'segmentation': {}}], 'shape': 'mask'}, 400, 'regions[0]', ''),
        ({'image': 'https://a.org/x.png'}, 400, 'image', '--allow-image-host'),
        ({'image': 'data:image/png;base64,AAAA'}, 400, 'image', 'not a picture in a known format'),
        ({'max_tokens': 1020}, 400, 'max_tokens', 'exceed the context'),
        ({'template': 'x'}, 400, 'template', 'unknown template'),
    ],
)
def test_refused(served, fields, status, param, message):
    with pytest.raises(ApiError) as caught:
        regions_exchange(regions(**fields), served, 'abc')
    assert (caught.value.status, caught.value.param) == (status, param)
    assert message in caught.value.message


def test_masks_of_too_many_pixels_are_not_decoded(served, monkeypatch):
    monkeypatch.setattr(module, 'MAX_MASK_PIXELS', 3 * 60 * 50)
    assert len(regions_exchange(regions(regions=[MASK] * 3, shape='mask'), served, 'abc').questions) == 3
    with pytest.raises(ApiError, match='send fewer, or polygons'):
        regions_exchange(regions(regions=[MASK] * 4, shape='mask'), served, 'abc')
    monkeypatch.setattr(module, 'MAX_CORNERS', 8)
    with pytest.raises(ApiError, match='more than 8 corners'):
        regions_exchange(regions(regions=[MASK] * 3, shape='mask'), served, 'abc')
