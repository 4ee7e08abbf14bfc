"""The widget for notebooks, shown by what a notebook calls of it."""

import numpy as np
import pytest

import vipllava_jax as vj

pytestmark = pytest.mark.page
RENDER = """async ([code, values]) => {
  const file = new Blob([code], { type: 'text/javascript' });
  const { default: widget } = await import(URL.createObjectURL(file));
  window.values = values;
  const listeners = new Set();
  window.change = (regions) => {
    if (JSON.stringify(regions) === JSON.stringify(values.regions)) return;
    values.regions = regions;
    listeners.forEach((listener) => listener());
  };
  const model = {
    get: (name) => values[name],
    set: (name, value) => change(value),
    save_changes: () => (values.saved = true),
    on: (name, listener) => listeners.add(listener),
    off: (name, listener) => listeners.delete(listener),
  };
  window.end = widget.render({ model, el: document.body });
}"""
SHOWN = '() => document.querySelector("iframe").contentDocument.querySelector("#picture")?.naturalWidth'


@pytest.fixture
def shown(browser):
    """Shows a widget in a new page."""
    pages = []

    def show(widget):
        page = browser.new_page()
        pages.append(page)
        requested = []
        page.on('request', lambda request: requested.append(request.url))
        page.evaluate(RENDER, [widget._esm, {'page': widget.page, 'regions': widget.regions}])
        page.wait_for_function(SHOWN)
        assert all(url.startswith(('data:', 'blob:', 'about:')) for url in requested)
        return page

    yield show
    for page in pages:
        page.close()


def drag(page, points):
    box = page.frame_locator('iframe').locator('#picture').bounding_box()
    places = [(box['x'] + x * box['width'] / 640, box['y'] + y * box['height'] / 480) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def test_marks_are_those_that_are_drawn(shown):
    widget = vj.draw_widget(np.full((480, 640, 3), 128, np.uint8))
    page = shown(widget)
    frame = page.frame_locator('iframe')
    drag(page, [(100, 80), (180, 150), (300, 240)])
    frame.locator('[name=tool][value=arrow]').check()
    frame.locator('[name=color][value=aqua]').check()
    drag(page, [(500, 400)])
    page.wait_for_function('window.values.saved && window.values.regions.length === 2')
    widget.regions = page.evaluate('window.values.regions')
    box, arrow = widget.marks
    assert (box.shape, box.color, box.units) == ('rectangle', 'red', 'pixel')
    assert box.box == pytest.approx([100, 80, 300, 240], abs=1)
    assert (arrow.shape, arrow.color) == ('arrow', 'aqua')
    assert arrow.point == pytest.approx([500, 400], abs=1)
    assert vj.draw(np.full((480, 640, 3), 128, np.uint8), widget.marks).size == (640, 480)


def test_a_widget_that_is_shown_again_has_its_marks(shown):
    widget = vj.draw_widget(np.full((480, 640, 3), 128, np.uint8))
    widget.regions = [{'shape': 'ellipse', 'color': 'gold', 'box': [10, 20, 200, 220], 'units': 'pixels'}]
    page = shown(widget)
    page.frame_locator('iframe').locator('#drawn > .ellipse').wait_for()
    page.wait_for_function('window.values.saved')
    assert page.evaluate('window.values.regions') == widget.regions
    assert widget.marks == [vj.Mark('ellipse', box=(10, 20, 200, 220), color='gold', units='pixel')]


def test_marks_are_kept_when_a_notebook_moves_the_widget(shown):
    page = shown(vj.draw_widget(np.full((480, 640, 3), 128, np.uint8)))
    drag(page, [(100, 80), (180, 150), (300, 240)])
    page.wait_for_function('window.values.saved && window.values.regions.length === 1')
    drawn = page.evaluate('window.values.regions')
    page.evaluate('window.values.saved = false')
    page.evaluate('document.body.append(document.querySelector("iframe"))')  # which loads the frame again
    page.wait_for_function('window.values.saved')
    assert page.evaluate('window.values.regions') == drawn
    assert page.frame_locator('iframe').locator('#drawn > .rectangle').count() == 1


def test_marks_that_change_elsewhere_are_shown(shown):
    page = shown(vj.draw_widget(np.full((480, 640, 3), 128, np.uint8)))
    regions = [{'shape': 'arrow', 'color': 'aqua', 'point': [500, 400], 'units': 'pixels'}]
    page.evaluate('(regions) => change(regions)', regions)
    page.frame_locator('iframe').locator('#drawn > .arrow').wait_for()
    assert page.evaluate('window.values.regions') == regions


def test_regions_are_no_code(shown):
    widget = vj.draw_widget(np.full((480, 640, 3), 128, np.uint8))
    text = '</script><script>parent.broken = true</script>$&'
    widget.regions = [
        {'shape': 'ellipse', 'color': 'red', 'box': [1, 2, 20, 30], 'units': 'pixels', 'a': text}
    ]
    page = shown(widget)
    page.frame_locator('iframe').locator('#drawn > .ellipse').wait_for()
    assert page.evaluate('window.broken') is None
