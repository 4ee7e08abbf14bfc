"""`vipllava regions` answers about each region of a file, and loses no answer and no file of the user."""

import functools
import json
import os
import shutil

import pytest
from PIL import Image

import vipllava_jax as vj
from vipllava_jax import loading
from vipllava_jax.answering import regions as library
from vipllava_jax.cli.regions import SHAPES
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.world import Scene, Thing
from vipllava_jax.inputs.marks import PREPOSITIONS

BOXES = [[5, 5, 40, 30], [20, 10, 80, 55], [50, 2, 90, 40]]
SHORT = ('--max-new-tokens', 3, '--batch', 2, '--fit', 'pad')
COCO = {
    'images': [
        {'id': 7, 'file_name': 'photo.png', 'width': 90, 'height': 60},
        {'id': 8, 'file_name': 'x.png'},
    ],
    'annotations': [
        {'id': 10 + n, 'image_id': 7, 'category_id': 1, 'bbox': [x, y, x2 - x, y2 - y], 'score': 0.5}
        for n, (x, y, x2, y2) in enumerate(BOXES)
    ]
    + [{'id': 1, 'image_id': 8, 'category_id': 1, 'bbox': [1, 1, 9, 9]}],
    'categories': [{'id': 1, 'name': 'dog'}, {'id': 2, 'name': 'cat'}],
}


@pytest.fixture
def boxes(tmp_path):
    path = tmp_path / 'boxes.csv'
    path.write_text('x1,y1,x2,y2\n' + ''.join(','.join(map(str, box)) + '\n' for box in BOXES))
    return path


@pytest.fixture
def coco(tmp_path):
    path = tmp_path / 'coco.json'
    path.write_text(json.dumps(COCO))
    return path


@pytest.fixture(scope='module')
def expected(folder):
    """The answers of the library, two at a time as in SHORT."""
    model, settings = vj.load(folder), vj.GenerationSettings(max_new_tokens=3)
    image = Image.new('RGB', (90, 60), (10, 120, 200))
    pairs = (BOXES[:2], BOXES[2:] * 2)
    ask = functools.partial(vj.ask_regions, model, 'What is {mark}?', image, settings=settings, fit='pad')
    return [answer for boxes in pairs for answer in ask(boxes)][: len(BOXES)]


def test_json_lines_are_printed_in_order(vipllava, folder, photo, boxes, expected):
    ran = vipllava('regions', photo, '--model', folder, '--boxes', boxes, *SHORT)
    assert ran.code == 0, ran.err
    assert [json.loads(line) for line in ran.out.splitlines()] == [
        {
            'index': n,
            'image': 'photo.png',
            'box': box,
            'question': 'What is within the red rectangle?',
            'model': str(folder),
            'answer': answer,
            'new_tokens': 3,
            'finish_reason': 'length',
        }
        for n, (box, answer) in enumerate(zip(BOXES, expected, strict=True))
    ]


def test_annotations_are_written_with_their_captions(vipllava, folder, photo, coco, expected, tmp_path):
    out = tmp_path / 'out.json'
    ran = vipllava('regions', photo, '--model', folder, '--coco', coco, '--output', out, *SHORT)
    assert (ran.code, ran.out) == (0, ''), ran.err
    written = json.loads(out.read_text())
    assert written['images'] == COCO['images'][:1]
    assert written['categories'] == COCO['categories']
    assert written['annotations'] == [
        {**entry, 'caption': text} for entry, text in zip(COCO['annotations'][:3], expected, strict=True)
    ]


def test_boxes_are_written_as_annotations_and_broken_ones_are_left_out(
    vipllava, folder, photo, boxes, tmp_path
):
    out = tmp_path / 'out.json'
    lines = boxes.read_text().splitlines()
    boxes.write_text('\n'.join([*lines[:2], '1,2,300,4', lines[2]]))
    ask = ('regions', photo, '--model', folder, '--boxes', boxes, '--output', out, *SHORT)
    refused = vipllava(*ask)
    assert (refused.code, refused.out) == (2, '')
    assert 'boxes.csv, line 3: mark rectangle:1,2,300,4' in refused.err
    assert not out.exists()
    ran = vipllava(*ask, '--skip-broken')
    assert 'left out' in ran.err
    found = json.loads(out.read_text())
    assert found['images'] == [{'id': 1, 'file_name': 'photo.png', 'width': 90, 'height': 60}]
    assert [(entry['id'], entry['bbox']) for entry in found['annotations']] == [
        (1, [5, 5, 35, 25]),
        (3, [20, 10, 60, 45]),
    ]


def test_a_picture_shows_the_answers_which_are_printed_as_well(
    vipllava, folder, photo, boxes, expected, tmp_path
):
    out = tmp_path / 'out.png'
    ran = vipllava('regions', photo, '--model', folder, '--boxes', boxes, '--output', out, *SHORT)
    assert ran.code == 0, ran.err
    assert [json.loads(line)['answer'] for line in ran.out.splitlines()] == expected
    with Image.open(out) as image:
        assert image.width == 720
        assert image.height > 480


def test_what_is_missing_is_added_to_a_file_of_json_lines(
    vipllava, folder, photo, boxes, tmp_path, monkeypatch
):
    out = tmp_path / 'out.jsonl'
    ask = ('regions', photo, '--model', folder, '--boxes', boxes, '--output', out, *SHORT)

    def failing(*args):
        yield next(library_answers(*args))
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')

    library_answers = library.answer_regions
    monkeypatch.setattr(library, 'answer_regions', failing)
    vipllava(*ask)
    monkeypatch.undo()
    complete = out.read_text()
    assert complete.count('\n') == 2  # the first batch
    again = vipllava(*ask)
    assert (again.code, again.err.count('\n')) == (2, 1)
    assert 'exists: give another name, or --resume' in again.err
    out.write_text(complete + '{"index": 2, "bo')  # as if it had been killed
    assert vipllava(*ask, '--resume').code == 0
    assert out.read_text().startswith(complete)
    assert [json.loads(line)['index'] for line in out.read_text().splitlines()] == [0, 1, 2]
    monkeypatch.setattr(loading.Source, 'load', None)  # nothing is left to do
    assert vipllava(*ask, '--resume').code == 0
    model, picture = shutil.copytree(folder, tmp_path / 'x'), shutil.copy(photo, tmp_path / 'x.png')
    others = {'question': ('Where is {mark}?',), 'model': ('--model', model)}
    for name, other in others.items():
        ran = vipllava(*ask, '--resume', *other)
        assert (ran.code, ran.err.count('\n')) == (2, 1)
        assert f'line 1 has the {name} ' in ran.err
    assert 'line 1 has the image ' in vipllava('regions', picture, *ask[2:], '--resume').err


@pytest.mark.parametrize('name', ['out.jsonl', 'out.json', 'out.png'])
def test_an_existing_file_is_not_replaced(vipllava, photo, boxes, tmp_path, name):
    out = tmp_path / name
    out.write_text('the last line is incomplete')
    ask = ('regions', photo, '--boxes', boxes, '--output', out, '--model', 'demo', '--fit', 'pad')
    found = {(): 'exists: give another name'}
    if name == 'out.jsonl':
        found['--resume',] = 'is damaged: not JSON'
    for more, message in found.items():
        ran = vipllava(*ask, *more)
        assert (ran.code, ran.err.count('\n')) == (2, 1)
        assert message in ran.err
        assert out.read_text() == 'the last line is incomplete'


def test_marks_that_are_cut_off_are_named(vipllava, folder, photo, boxes):
    ran = vipllava('regions', photo, '--model', folder, '--boxes', boxes, *SHORT[:4], '--fit', 'crop')
    assert ran.code == 0
    assert 'the crop cuts off 3 of 3 marks' in ran.err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'give the regions with either --coco FILE or --boxes FILE'),
        (('--boxes', 'boxes.csv', '--coco', 'coco.json'), 'either --coco FILE or --boxes FILE'),
        (('--boxes', 'boxes.csv', '--image-id', 7), '--image-id needs --coco'),
        (('--boxes', 'none.csv'), "no file of boxes 'none.csv'"),
        (('--boxes', 'coco.json'), 'give it with --coco'),
        (('--boxes', 'photo.png'), 'photo.png is not UTF-8'),
        (('--coco', 'boxes.csv'), 'boxes.csv: not JSON'),
        (('--coco', 'coco.json', '--image-id', 9), "no picture with the id '9': give --image-id"),
        (('--coco', 'coco.json', '--category', 'cat'), 'no annotation of the category cat'),
        (('--coco', 'small.json'), '45x30 pixels there, but photo.png has 90x60'),
        (
            ('--coco', 'turned.json'),
            '60x90 pixels there, but photo.png has 90x60 (turned upright if its EXIF',
        ),
        (('--boxes', 'boxes.csv', 'What is it?'), 'does not say which region it is about'),
        (('--boxes', 'boxes.csv', '--format', 'coco'), '--format coco needs --output FILE'),
        (('--boxes', 'boxes.csv', '--resume'), '--resume needs --output FILE'),
        (('--boxes', 'boxes.csv', '--output', 'out.txt'), 'ends in .jsonl, .json (COCO) or .png'),
        (('--boxes', 'boxes.csv', '--output', 'out.txt', '--format', 'picture'), '.png or .jpg'),
        (('--boxes', 'boxes.csv', '--output', 'out.json', '--resume'), '--resume continues JSON lines'),
        (('--boxes', 'boxes.csv', '--output', 'none/out.json'), 'there is no folder'),
        (('--boxes', 'boxes.csv', '--output', 'out.json', '--logprobs', 1), '--logprobs needs JSON lines'),
        (('--coco', 'coco.json', '--output', 'coco.json'), 'would be overwritten'),
        (('--boxes', 'boxes.csv', '--output', 'link.png'), 'would be overwritten'),
        (('--boxes', 'many.csv', '--output', 'out.png'), 'a picture shows at most 200'),
    ],
)
def test_errors_are_one_line_before_the_model_is_looked_for(
    vipllava, photo, boxes, coco, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'many.csv').write_text('5,5,40,30\n' * 201)
    (tmp_path / 'small.json').write_text(json.dumps(COCO).replace('90', '45').replace('60', '30'))
    (tmp_path / 'turned.json').write_text(json.dumps(COCO).replace('90, "height": 60', '60, "height": 90'))
    os.link(photo, tmp_path / 'link.png')
    monkeypatch.setattr(loading, 'locate', None)
    ran = vipllava('regions', 'photo.png', *arguments)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err
    assert not (tmp_path / 'out.json').exists()


def test_the_shapes_are_those_of_marks():
    assert sorted(shape.replace('-', ' ') for shape in SHAPES) == sorted(PREPOSITIONS)


@pytest.mark.slow
def test_the_demo_model_names_the_things_in_the_regions(vipllava, tmp_path):
    things = (
        Thing('star', 'navy', 'medium', 'plain', 80, 100, 50, 0.1),
        Thing('house', 'brown', 'medium', 'plain', 250, 240, 50, 0.0),
        Thing('ring', 'teal', 'small', 'plain', 110, 225, 35, 0.0),
    )
    picture(Scene(things, 'flat', 5)).save(tmp_path / 'world.png')
    path = tmp_path / 'boxes.json'
    path.write_text('[[20, 40, 140, 160], "ellipse:190,180,310,300", {"box": [75, 190, 145, 260]}]')
    ran = vipllava(
        'regions', tmp_path / 'world.png', '--model', 'demo', '--boxes', path, '--mode', 'together'
    )
    assert ran.code == 0, ran.err
    answers = [json.loads(line)['answer'] for line in ran.out.splitlines()]
    assert answers == ['a star', 'a house', 'a ring']
