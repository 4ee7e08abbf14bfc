"""Marks are posted where they were drawn, whatever draws them and however the picture is shown."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vipllava_jax.inputs.marks import COLORS, Mark, draw

pytestmark = pytest.mark.page
BOX = [(100, 80), (180, 150), (300, 240)]
RING = [(200 + 90 * math.cos(a / 8), 220 + 60 * math.sin(a / 8)) for a in range(50)]
CURVE = [(100, 300), (160, 60), (360, 460), (420, 120)]  # the control points of a scribble
REACH = {  # pixels, across and down, by which a shape may differ from the server's; most at the ends of lines
    'rectangle': 1,
    'ellipse': 1,
    'triangle': 2,
    'point': 1,
    'arrow': 2,
    'scribble': 2,
    'mask': 1,
    'mask contour': 1,
}
SCREENS = {
    'plain': {},
    'dense': {'device_scale_factor': 2},
    'phone': {'device_scale_factor': 3, 'viewport': {'width': 390, 'height': 844}},
}


@pytest.fixture(params=SCREENS)
def drawn(visit, photo, request):
    """The page with a picture and no marks."""
    driver = visit(has_touch=True, **SCREENS[request.param])
    driver.open('photo.png', photo)
    return driver


def bezier(controls, n=60):
    """Points on a cubic Bezier curve."""
    t = np.linspace(0, 1, n)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return weights @ np.array(controls, float)


def farthest(points, others):
    """The largest distance of a point from the nearest of the others."""
    points, others = np.array(points, float), np.array(others, float)
    return max(np.hypot(*(others - point).T).min() for point in points)


@pytest.mark.parametrize('by', ['mouse', 'touch', 'pen'])
def test_every_shape_is_posted_where_it_was_drawn(drawn, by):
    drawn.page.evaluate('addEventListener("pointerdown", (event) => (window.by = event.pointerType))')
    for shape in ('rectangle', 'ellipse', 'triangle'):
        drawn.choose('tool', shape)
        drawn.drag(BOX, by)
    for shape in ('point', 'arrow'):
        drawn.choose('tool', shape)
        drawn.drag([(500, 400), (520, 410)], by)
    for shape in ('mask', 'mask contour'):
        drawn.choose('tool', shape)
        drawn.drag(RING, by)
    drawn.choose('tool', 'scribble')
    drawn.choose('color', 'aqua')
    drawn.drag([tuple(point) for point in bezier(CURVE)], by)
    assert drawn.page.evaluate('window.by') == by
    marks = {mark['shape']: mark for mark in drawn.marks()}
    assert len(marks) == 8
    for shape in ('rectangle', 'ellipse', 'triangle'):
        assert marks[shape]['box'] == pytest.approx([100, 80, 300, 240], abs=1)
    for shape in ('point', 'arrow'):
        assert marks[shape]['point'] == pytest.approx([520, 410], abs=1)
    for shape in ('mask', 'mask contour'):
        polygon = marks[shape]['polygon']
        assert farthest(polygon, RING) <= 1.5
        assert np.ptp(polygon, axis=0) == pytest.approx(np.ptp(RING, axis=0), abs=2)
    curve = bezier(marks['scribble']['polygon'], 600)
    assert farthest(bezier(CURVE), curve) <= 3
    assert {mark['color'] for mark in marks.values()} == {'red', 'aqua'}


@pytest.mark.parametrize('shape', REACH)
def test_marks_look_as_the_server_draws_them(visit, tmp_path, shape):
    grey, file = Image.new('RGB', (640, 480), '#808080'), io.BytesIO()
    grey.save(file, 'PNG')
    place = {'point': [500, 400]} if shape in ('point', 'arrow') else {'box': [100, 80, 300, 240]}
    if shape in ('scribble', 'mask', 'mask contour'):
        place = {'polygon': CURVE if shape == 'scribble' else [[round(x), round(y)] for x, y in RING]}
    driver = visit(viewport={'width': 1440, 'height': 1000})
    driver.open('grey.png', file.getvalue())
    (tmp_path / 'marks.json').write_text(json.dumps([{'shape': shape, 'color': 'red', **place}]))
    driver.page.set_input_files('#import-file', tmp_path / 'marks.json')
    driver.page.wait_for_selector('#drawn > *')
    shot = Image.open(io.BytesIO(driver.page.locator('#sheet').screenshot())).convert('RGB')
    ours, theirs = (
        Image.fromarray(np.ptp(image, axis=2) > 40)
        for image in (shot.resize(grey.size), draw(grey, Mark(shape, color='red', **place)))
    )
    for one, other in ((ours, theirs), (theirs, ours)):
        around = np.asarray(other.convert('L').filter(ImageFilter.MaxFilter(2 * REACH[shape] + 1)), bool)
        assert np.asarray(one).any()
        assert not (np.asarray(one) & ~around).any()


def test_marks_have_nine_colors(visit):
    driver = visit()
    driver.page.click('#clear')
    driver.choose('tool', 'point')
    for n, color in enumerate(COLORS):
        driver.choose('color', color)
        driver.drag([(30 + 30 * n, 40)])
    assert [mark['color'] for mark in driver.marks()] == [*COLORS]


def test_geometry_is_as_exact_after_zooming(drawn):
    x, y = drawn.on_screen([(200, 160)])[0]
    width = drawn.page.locator('#picture').bounding_box()['width']
    drawn.page.mouse.move(x, y)
    drawn.page.keyboard.down('Control')
    drawn.page.mouse.wheel(0, -250)
    drawn.page.keyboard.up('Control')
    drawn.wait_until(f'document.getElementById("picture").clientWidth > {1.2 * width}')
    assert drawn.on_screen([(200, 160)])[0] == pytest.approx((x, y), abs=4)
    drawn.drag([(180, 140), (200, 150), (220, 180)])
    (mark,) = drawn.marks()
    assert mark['box'] == pytest.approx([180, 140, 220, 180], abs=1)


def test_a_mark_is_moved_stretched_and_deleted(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag(BOX)
    driver.drag([(200, 200)])  # which selects it
    driver.drag([(300, 240), (350, 300)])  # its corner
    driver.choose('tool', 'select')
    driver.drag([(200, 200), (250, 220), (-100, 180)])  # as far as the picture goes
    (mark,) = driver.marks()
    assert mark['box'] == pytest.approx([0, 60, 250, 280], abs=1)
    driver.page.focus('#canvas')
    driver.page.keyboard.press('Delete')
    assert driver.marks() == []


def test_undo_and_redo(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag(BOX)
    driver.drag([(400, 100), (500, 200)])
    driver.choose('tool', 'select')
    driver.drag([(450, 150), (460, 150), (470, 150)])
    marks = driver.page.locator('#drawn > *')
    driver.page.click('#undo')
    assert driver.marks()[1]['box'] == pytest.approx([400, 100, 500, 200], abs=1)
    driver.page.click('h1')
    driver.page.keyboard.press('Control+z')
    assert marks.count() == 1
    driver.page.click('#undo')
    assert marks.count() == 0
    assert driver.page.is_disabled('#undo')
    for _ in range(3):
        driver.page.keyboard.press('Control+Shift+z')
    assert driver.marks()[1]['box'] == pytest.approx([420, 100, 520, 200], abs=1)
    assert driver.page.is_disabled('#redo')


def test_marks_are_drawn_and_changed_by_the_keyboard(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.page.focus('#canvas')
    for key in ('Enter', 'ArrowRight', 'ArrowRight', 'ArrowUp', 'Shift+ArrowDown'):
        driver.page.keyboard.press(key)
    told = driver.page.text_content('#announcement')
    assert told == 'Mark 1, within the red rectangle, is at 228,166 to 420,312.'
    (mark,) = driver.marks()
    assert mark['box'] == [228, 166, 420, 312]
    driver.choose('tool', 'arrow')
    driver.page.focus('#canvas')
    for key in ('Enter', 'Space', 'Space', 'Delete', 'Space', 'ArrowLeft'):
        driver.page.keyboard.press(key)
    (mark,) = driver.marks()
    assert (mark['shape'], mark['point']) == ('arrow', [318, 240])


def test_a_click_that_changes_nothing_is_no_step(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag(BOX)
    driver.drag([(400, 100), (500, 200)])
    driver.page.click('#undo')
    driver.choose('tool', 'select')
    driver.drag([(200, 200)])
    driver.drag([(300, 240)])  # its corner
    driver.page.click('#redo')
    assert len(driver.marks()) == 2


def test_a_mark_takes_the_color_that_is_chosen_already(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag(BOX)
    driver.choose('color', 'blue')
    driver.drag([(200, 200)])  # which selects the mark
    driver.page.click('[name=color][value=blue]')
    assert [mark['color'] for mark in driver.marks()] == ['blue']


def test_a_click_on_a_large_picture_may_slip(visit):
    file = io.BytesIO()
    Image.new('L', (4000, 3000), 128).save(file, 'PNG')
    driver = visit()
    driver.open('large.png', file.getvalue())
    driver.drag([(800, 800), (2400, 2000)])
    driver.drag([(1600, 1400), (1606, 1406)])
    assert driver.page.locator('#selection > *').count() > 0
    driver.drag([(200, 200), (600, 600), (202, 202)])  # given up
    assert driver.page.locator('#drawn > *').count() == 1


def test_a_corner_moves_as_far_as_the_pointer(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag(BOX)
    driver.drag([(200, 200)])  # which selects it
    driver.drag([(304, 243), (344, 283)])
    assert driver.marks()[0]['box'] == pytest.approx([100, 80, 340, 280], abs=1)


def test_a_small_mark_is_moved(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag([(100, 100), (130, 130)])
    driver.choose('tool', 'select')
    driver.drag([(115, 115)])
    driver.drag([(109, 109), (149, 129)])
    assert driver.marks()[0]['box'] == pytest.approx([140, 120, 170, 150], abs=1)


def test_a_key_that_is_held_adds_one_mark(visit):
    driver = visit()
    driver.page.click('#clear')
    driver.page.focus('#canvas')
    for _ in range(3):
        driver.page.keyboard.down('Enter')
    assert driver.page.text_content('#announcement') == 'Mark 1, within the red rectangle, was added.'
    assert len(driver.marks()) == 1


def test_two_fingers_magnify_the_picture_and_draw_nothing(visit, photo):
    driver = visit(has_touch=True)
    driver.open('photo.png', photo)
    width = driver.page.locator('#picture').bounding_box()['width']
    x, y = driver.on_screen([(320, 240)])[0]
    for kind, apart in (('touchStart', 20), ('touchMove', 40), ('touchMove', 60)):
        points = [{'x': x + side * apart, 'y': y, 'id': side + 1} for side in (-1, 1)]
        driver.session.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})
    driver.session.send('Input.dispatchTouchEvent', {'type': 'touchEnd', 'touchPoints': []})
    driver.wait_until(f'document.getElementById("picture").clientWidth > {2.5 * width}')
    assert driver.page.locator('#picture').bounding_box()['width'] == pytest.approx(3 * width, rel=0.02)
    assert driver.marks() == []
