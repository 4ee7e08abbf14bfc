import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.makers import noise
from vipllava_jax.inputs.drawn_marks import drawn_marks
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark, draw
from vipllava_jax.inputs.strokes import Region, Variation

BOX = (40, 60, 180, 220)
DIAMOND = (110, 60, 180, 140, 110, 220, 40, 140)


def changed(mark: Mark, seed: int | None = None, size=(336, 300)) -> np.ndarray:
    """A mask of the pixels that a mark changes."""
    blank = Image.new('RGB', size, (90, 90, 90))
    return (np.asarray(draw(blank, mark, seed)) != np.asarray(blank)).any(-1)


def test_phrases_equal_those_of_training():
    assert Mark('rectangle', box=BOX).phrase == 'within the red rectangle'
    assert Mark('ellipse', box=BOX, color='lime').phrase == 'within the lime ellipse'
    assert Mark('arrow', box=BOX, color='blue').phrase == 'pointed to by the blue arrow'
    assert Mark('point', box=BOX, color='gold').phrase == 'at the gold point'
    assert Mark('mask contour', box=BOX, color=(1, 2, 3)).phrase == 'with the mask contour'
    assert len(PREPOSITIONS) == 8
    assert len(COLORS) == 9


def test_a_rectangle_is_composited_as_in_training():
    picture = noise(672, 400)
    expected = Image.new('RGBA', picture.size)
    ImageDraw.Draw(expected).rectangle(BOX, outline=(255, 165, 0, 128), width=6)
    expected = Image.alpha_composite(picture.convert('RGBA'), expected).convert('RGB')
    np.testing.assert_array_equal(draw(picture, Mark('rectangle', box=BOX, color='orange')), expected)

    under, over = np.asarray(picture, int), np.array([255, 165, 0])
    blend = np.floor((over * 128 + under * 127) / 255 + 0.5)
    x1, y1, x2, y2 = BOX
    border = np.zeros((400, 672), bool)
    border[y1 : y2 + 1, x1 : x2 + 1] = True
    border[y1 + 6 : y2 - 5, x1 + 6 : x2 - 5] = False
    np.testing.assert_array_equal(expected, np.where(border[..., None], blend, under))


def test_a_mask_is_filled_and_a_mask_contour_is_not():
    mask, contour = changed(Mark('mask', polygon=DIAMOND)), changed(Mark('mask contour', polygon=DIAMOND))
    assert mask[140, 110]
    assert not contour[140, 110]
    assert not mask[70, 50]
    assert contour[62, 110]
    assert (changed(Mark('mask contour', polygon=DIAMOND, width=3)) >= contour).all()


def test_a_point_is_a_disc_around_its_coordinates():
    touched = changed(Mark('point', point=(100, 50)))
    rows, columns = np.nonzero(touched)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (42, 58, 92, 108)
    hollow = ((0, 0), (100, 0), (100, 100), (0, 100), (0, 88), (88, 88), (88, 12), (0, 12))
    assert Region((200, 200), (0, 0, 100, 100), (hollow,), None).inner_point() in [
        (90, 50),
        (50, 10),
        (50, 90),
    ]


def test_the_tip_of_an_arrow_is_at_its_point():
    for tip in [(20, 20), (300, 30), (170, 150), (30, 280)]:
        touched = changed(Mark('arrow', point=tip))
        assert touched[tip[1] - 1 : tip[1] + 2, tip[0] - 1 : tip[0] + 2].any()


@pytest.mark.parametrize('shape', PREPOSITIONS)
@pytest.mark.parametrize('geometry', [{'box': BOX}, {'polygon': DIAMOND}, {'box': BOX, 'polygon': [DIAMOND]}])
def test_every_shape_is_fixed_without_a_seed_and_varied_with_one(shape, geometry):
    mark, picture = Mark(shape, **geometry), noise(336, 300)
    fixed = np.asarray(draw(picture, mark))
    np.testing.assert_array_equal(fixed, draw(picture, mark))
    assert (fixed != np.asarray(picture)).any()
    np.testing.assert_array_equal(draw(picture, mark, seed=3), draw(picture, mark, seed=3))
    assert len({draw(picture, mark, seed).tobytes() for seed in range(4)}) > 1
    if shape not in ('arrow', 'ellipse'):  # these may extend beyond the box
        assert changed(mark)[40:240, 20:200].sum() == changed(mark).sum()


def test_a_given_width_and_alpha_do_not_vary_with_the_seed():
    mark = Mark('rectangle', box=BOX, width=5, alpha=255)
    for seed in (None, 1, 2):
        picture = draw(Image.new('RGB', (336, 300)), mark, seed)
        assert picture.getpixel((44, 100)) == (255, 0, 0)
        assert picture.getpixel((45, 100)) == (0, 0, 0)


@given(seed=st.integers(0, 10_000), s=st.floats(0.3, 12))
def test_variation_stays_within_what_training_used(seed, s):
    vary = Variation(np.random.default_rng(seed))
    assert max(int(2 * s), 1) <= vary.integer(2 * s, 8 * s, 3 * s) <= max(int(8 * s), 1)
    assert 3 <= vary.number(5, 3, 4) <= 5
    region = Region((200, 200), (0, 0, 100, 100), (((0, 0), (100, 0), (0, 100)),), None)
    x, y = region.random_point(vary)
    assert x + y <= 100
    one = Region(
        (9, 9), (0, 0, 9, 9), (((0, 0), (9, 0), (9, 9)), ((0, 0), (0, 9), (9, 9))), None
    ).pick_polygon(vary)
    assert len(one.polygons) == 1


def test_the_range_of_alpha_is_that_of_training():
    for shape, low, high in [('rectangle', 96, 255), ('mask', 48, 128)]:
        reds = [
            np.asarray(draw(Image.new('RGB', (99, 99)), Mark(shape, box=(9, 9, 90, 90)), s)).max()
            for s in range(300)
        ]
        assert low <= min(reds) < low + 10
        assert high - 10 < max(reds) <= high


def test_relative_coordinates_are_fractions():
    picture = noise(200, 100)
    expected = draw(picture, Mark('rectangle', box=(50, 20, 150, 80)))
    np.testing.assert_array_equal(draw(picture, Mark('rectangle', box=(0.25, 0.2, 0.75, 0.8))), expected)
    assert Mark('rectangle', box=(0, 0, 1, 1)).region((200, 100)).box == (0, 0, 199, 99)
    with pytest.raises(ValueError, match='outside the picture, which is 200x100 pixels.*read as fractions'):
        draw(picture, Mark('rectangle', box=(0.2, 0.2, 1.5, 0.8), units='relative'))
    with pytest.raises(ValueError, match='less than a pixel wide or high.*read as pixels'):
        draw(picture, Mark('rectangle', box=(0.2, 0.2, 0.8, 0.8), units='pixel'))


def test_several_marks_are_drawn_in_order_and_recorded():
    marks = [Mark('mask', box=BOX, alpha=255), Mark('mask', box=(60, 80, 100, 120), color='blue', alpha=255)]
    picture = draw(draw(noise(336, 300), marks[:1]), marks[1:])
    assert picture.getpixel((50, 70)) == (255, 0, 0)
    assert picture.getpixel((70, 90)) == (0, 0, 255)
    assert drawn_marks(picture).extents == (
        (str(marks[0]), (40, 60, 181, 221)),
        (str(marks[1]), (60, 80, 101, 121)),
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'shape': 'circle', 'box': BOX}, "unknown shape 'circle': choose rectangle, ellipse"),
        ({'shape': 'mask', 'box': BOX, 'color': 'pink'}, "unknown color 'pink': choose red, lime"),
        ({'shape': 'mask', 'box': BOX, 'color': (0, 0, 300)}, 'unknown color'),
        ({'shape': 'mask', 'box': BOX, 'color': None}, 'unknown color'),
        ({'shape': 'rectangle'}, 'rectangle needs a box x1, y1, x2, y2 or a polygon'),
        ({'shape': 'arrow'}, 'arrow needs a box .*, or a point x, y'),
        ({'shape': 'rectangle', 'point': (3, 3)}, 'rectangle needs a box'),
        ({'shape': 'rectangle', 'box': (1, 2, 3)}, 'a box has x1, y1, x2, y2'),
        ({'shape': 'rectangle', 'box': 7}, 'expected numbers, found 7'),
        ({'shape': 'rectangle', 'box': (9, 2, 3, 4)}, 'is empty: give the upper left'),
        ({'shape': 'rectangle', 'box': (1, 2, 1, 4)}, 'is empty'),
        ({'shape': 'rectangle', 'box': (1, 2, float('nan'), 4)}, 'must be finite'),
        ({'shape': 'arrow', 'point': (1, float('inf'))}, 'must be finite'),
        ({'shape': 'mask', 'polygon': []}, 'is empty: give at least three corners'),
        ({'shape': 'mask', 'polygon': 'here'}, 'expected numbers'),
        ({'shape': 'mask', 'polygon': [[(1, 2), (3, 4, 5), (6, 7)]]}, 'a corner of a polygon has x and y'),
        ({'shape': 'mask', 'polygon': [(1, 1), (2, 2), (5, 5)]}, 'not on one line'),
        ({'shape': 'mask', 'polygon': [1, 2, 3, 4, 5]}, 'expected x1, y1'),
        ({'shape': 'mask', 'polygon': [(1, 2), (3, 4), 5]}, 'is empty'),
        ({'shape': 'mask', 'polygon': 5}, 'expected numbers, found 5: a polygon has'),
        ({'shape': 'mask', 'box': BOX, 'alpha': 0}, 'alpha 0: give a whole number from 1 to 255'),
        ({'shape': 'mask', 'box': BOX, 'alpha': 1.5}, 'alpha 1.5'),
        ({'shape': 'ellipse', 'box': BOX, 'width': 0}, 'width 0: give a positive number'),
        ({'shape': 'point', 'box': BOX, 'width': 3}, 'leave it out'),
        ({'shape': 'mask', 'box': BOX, 'units': 'cm'}, "units 'cm': choose"),
    ],
)
def test_errors_about_marks_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Mark(**arguments)
    assert '\n' not in str(caught.value)


def test_marks_outside_the_picture_are_refused():
    for box in [(400, 10, 420, 20), (10, 10, 337, 20), (-1, 10, 20, 30), (10, 290, 20, 301)]:
        with pytest.raises(
            ValueError, match=r'^mark rectangle:.*:red lies outside the picture, which is 336x300'
        ):
            draw(noise(336, 300), Mark('rectangle', box=box))
    assert changed(Mark('rectangle', box=(300, 290, 336, 300)))[:, 335].any()


def test_drawing_anything_but_a_mark_is_a_type_error():
    with pytest.raises(TypeError, match=r"expected a Mark, found 'r'"):
        draw(noise(9, 9), 'rectangle:1,2,3,4')


@given(
    shape=st.sampled_from(sorted(PREPOSITIONS)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    corners=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=6),
    seed=st.none() | st.integers(0, 99),
)
def test_every_valid_polygon_can_be_drawn(shape, size, corners, seed):
    try:
        mark = Mark(shape, polygon=corners)
        mark.region(size)
    except ValueError:
        return
    assert draw(Image.new('RGB', size), mark, seed).size == size
