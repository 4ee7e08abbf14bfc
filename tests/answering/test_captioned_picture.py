"""A picture with captions is readable for any size of picture and any text."""

import numpy as np
import pytest
from PIL import Image

from vipllava_jax.answering.captioned_picture import MAX_REGIONS, MAX_TEXT, Pen, captioned_picture
from vipllava_jax.inputs.marks import COLORS, Mark

MARKS = [
    Mark('rectangle', box=(0.1, 0.1, 0.6, 0.6)),
    Mark('arrow', point=(1.0, 1.0)),
    Mark('point', point=(0, 0)),
]


@pytest.mark.parametrize('size', [(1, 1), (48, 30), (60, 3000), (5000, 20), (900, 700)])
def test_pictures_of_any_size_have_room_for_the_answers(size):
    marks = MARKS[1:] if 1 in size else MARKS
    texts = ['a dog', '', 'x' * 5000][: len(marks)]
    page = captioned_picture(Image.new('RGB', size), marks, texts)
    assert 640 <= page.width <= 1600
    assert 600 < page.height + page.width < 3600
    below = np.asarray(page)[-6:].min(axis=(0, 2))
    assert (below == 255).all()  # the last text ends before the page does


@pytest.mark.parametrize('size', [(40, 1600), (1600, 1600)])
def test_the_largest_picture_is_not_too_high_for_jpeg(size):
    few = MAX_REGIONS // 20
    page = captioned_picture(Image.new('RGB', size), MARKS[:1] * few, ['W' * 5000] * few)
    assert size[1] + 20 * (page.height - size[1]) < 65_500


def test_a_mark_at_the_edge_of_a_small_picture_is_drawn():
    marks = [Mark('rectangle', box=(89, 0, 90, 60)), Mark('ellipse', box=(0, 0.5, 0.5, 1), units='relative')]
    assert captioned_picture(Image.new('RGB', (90, 60)), marks, ['', '']).width == 720


def test_each_number_has_the_color_of_its_mark():
    page = captioned_picture(Image.new('RGB', (720, 720)), MARKS, ['', '', ''])
    legend = np.asarray(page)[720:].reshape(-1, 3)
    for color in [*COLORS.values()][:3]:
        assert (legend == color).all(axis=1).any()


def test_a_long_text_is_wrapped_within_the_width_and_keeps_its_words():
    pen = Pen(20)
    text = 'words and ' * 30 + 'x' * 200
    lines = [*pen.wrapped(text, 300)]
    assert max(map(pen.font.getlength, lines)) <= 300
    assert ''.join(lines).replace(' ', '') == text.replace(' ', '')


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('“naïve” Übung — ½…', '“naive” Ubung - 1⁄2…'),
        ('a 中文 dog', 'a ?? dog'),
        ('\x1b[31m red\nline', '\\x1b[31m red line'),
    ],
)
def test_other_characters_have_a_substitute(text, shown):
    assert Pen(20).legible(text) == shown


def test_a_text_is_shortened_and_tags_do_not_cover_one_another():
    assert len(Pen(20).legible('word ' * 999)) <= MAX_TEXT
    pen, taken = Pen(20), []
    for _ in range(4):
        taken.append(pen.place(pen.tag_size(0), (300, 300, 500, 500), (800, 800), taken))
    assert len({*taken}) == 4
    assert MAX_REGIONS == 200
