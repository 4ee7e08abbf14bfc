"""Pictures are prepared as by the processor, and a broken one costs its question alone."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vipllava_jax as vj
from tests.engine.pictures import SETTINGS, SIDE, picture, png
from vipllava_jax.engine.picture_worker import HEADER, MAX_TEXT, message_of, read_answer
from vipllava_jax.engine.pictures import Pictures, default_workers
from vipllava_jax.engine.question import Question, QuestionError

ROOT = Path(__file__).parents[2]
RED = vj.Mark('rectangle', box=(10, 10, 40, 30))
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope='module')
def here():
    with Pictures(SETTINGS, 0) as pool:
        yield pool


@pytest.fixture(params=['here', 'pool'])
def either(request):
    return request.getfixturevalue(request.param)


def test_pictures_are_those_of_the_processor(either, model, tmp_path, monkeypatch):
    image = picture()
    image.save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)  # which the worker process does not follow
    transparent = picture().convert('RGBA')
    transparent.putalpha(100)
    sources = ['a.png', tmp_path / 'a.png', png(image), bytearray(png(image)), image, np.asarray(image)]
    sources += [Image.open('a.png'), transparent, np.asarray(image)[:, ::-1]]
    for fit in (None, 'pad'):
        found = either.submit(Question('What?', sources, ['2/arrow:20,20:blue', RED], fit=fit)).result()
        drawn = [vj.draw(image, RED), vj.draw(image, vj.Mark('arrow', point=(20, 20), color='blue'))]
        drawn += sources[2:]
        expected = [model.processor.pixels(source, fit=fit) for source in drawn]
        assert found.pixels.dtype == np.uint8
        settings = model.processor.image_settings
        np.testing.assert_array_equal(settings.normalize(found.pixels), expected)
        assert found.digests == tuple(hashlib.sha256(pixels).digest() for pixels in found.pixels)
        assert found.warnings == ()


def test_marks_that_are_cut_off_are_reported(either):
    question = Question('What?', [picture(), picture((90, 30))], '2/point:2,15:red')
    (warning,) = either.submit(question).result().warnings
    assert warning == (
        "the crop cuts off the mark point:2,15:red on image 2: fit='pad' keeps the whole image"
    )


def test_without_pictures_nothing_is_sent(here):
    found = here.submit(Question('What?')).result(0)
    assert (found.pixels.shape, found.digests, found.warnings) == ((0, SIDE, SIDE, 3), (), ())


BROKEN = {
    'image 2 is not a picture in a known format': [picture(), b'text'],
    'the image is damaged or cut short': [png(picture())[:-200]],
    'no picture at': ['nowhere.png'],
    'is a URL: download the picture': ['http://localhost/a.png'],
    'is not a file': [ROOT],
    'the image is 0x3: it has no pixels': [Image.new('RGB', (0, 3))],
    'the image: mark rectangle:10,10,40,30:red lies outside the picture': [picture((20, 20))],
}


@pytest.mark.parametrize('message', BROKEN)
def test_a_broken_picture_costs_its_question_alone(either, message):
    before, broken, after = (
        either.submit(Question('What?', images, RED)) for images in (picture(), BROKEN[message], picture())
    )
    with pytest.raises(QuestionError) as error:
        broken.result()
    assert message in str(error.value)
    np.testing.assert_array_equal(before.result().pixels, after.result().pixels)


def test_a_picture_whose_file_is_open_here_is_read_here(pool):
    for _ in range(2):
        broken = Image.open(io.BytesIO(png(picture())[:-200]))
        with pytest.raises(QuestionError, match='^the image is damaged or cut short'):
            pool.submit(Question('What?', broken)).result()
    odd = picture()
    odd.info['odd'] = lambda: None  # which no pickle can hold
    assert pool.submit(Question('What?', odd)).result().warnings == ()


def test_a_picture_of_too_many_pixels_is_refused_by_the_worker(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    data = png(picture((30, 30))), png(picture((40, 40)))
    with Pictures(SETTINGS, 1) as pool:
        small, large = (pool.submit(Question('What?', source)) for source in data)
        assert small.result().pixels.shape == (1, SIDE, SIDE, 3)
        with pytest.raises(QuestionError, match='million pixels'):
            large.result()


@pytest.mark.parametrize(
    ('data', 'error'),
    [
        (b'', EOFError),
        (HEADER.pack(0, 3) + b'ab', EOFError),
        (HEADER.pack(0, 0) + bytes(100), EOFError),
        (HEADER.pack(2, 0) + bytes(100_000), ValueError),
        (HEADER.pack(1, MAX_TEXT + 1) + bytes(2 * MAX_TEXT), ValueError),
    ],
)
def test_an_answer_of_another_form_is_not_read(data, error):
    with pytest.raises(error):
        read_answer(io.BytesIO(data), 2, SIDE)


def test_messages_are_printable_and_of_bounded_length():
    text = b'a\x1b[31m\xff' + b'b' * 5000
    message = read_answer(io.BytesIO(HEADER.pack(1, len(text)) + text), 1, SIDE)
    assert message.startswith('a\\x1b[31m')
    assert len(message) <= 500
    assert 'too much memory' in message_of(MemoryError())
    assert message_of(PermissionError(13, 'no', 'a.png')) == "'a.png' cannot be opened: Permission denied"
    assert message_of(KeyError('x')) == "the pictures cannot be prepared: KeyError 'x'"


def test_at_least_one_process_is_started():
    assert 1 <= default_workers() <= 16
