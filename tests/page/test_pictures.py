"""Pictures that are opened, dropped and pasted."""

import base64
import io
import json

import pytest
from PIL import Image

pytestmark = pytest.mark.page
GIVE = """([kind, data, text = '', target = 'body']) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt());
  const dataTransfer = new DataTransfer();
  if (data) dataTransfer.items.add(new File([bytes], 'photo.png', { type: 'image/png' }));
  if (text) dataTransfer.items.add(text, 'text/plain');
  const [Kind, name] = kind === 'drop' ? [DragEvent, 'dataTransfer'] : [ClipboardEvent, 'clipboardData'];
  const event = new Kind(kind, { bubbles: true, cancelable: true, [name]: dataTransfer });
  return !document.querySelector(target).dispatchEvent(event);
}"""


def test_a_broken_picture_is_told(visit, photo):
    driver = visit()
    driver.page.set_input_files('#file', {'name': '<b>x</b>.png', 'mimeType': 'image/png', 'buffer': b'no'})
    driver.page.wait_for_selector('#notice:not([hidden])')
    assert driver.text('#notice-text').startswith('<b>x</b>.png cannot be opened as a picture. Choose')
    broken = photo[: len(photo) - 200]  # which browsers show as far as it goes
    driver.page.set_input_files('#file', {'name': 'cut.png', 'mimeType': 'image/png', 'buffer': broken})
    driver.page.wait_for_selector('#notice-text:has-text("cut.png")')


def test_a_format_that_servers_may_not_read_is_written_anew(visit):
    driver, file = visit(), io.BytesIO()
    Image.new('RGB', (64, 48), 'teal').save(file, 'AVIF')
    driver.open('a.avif', file.getvalue(), 'image/avif')
    url = driver.ask('What is this?')['messages'][0]['content'][0]['image_url']['url']
    kind, _, data = url.partition(',')
    assert kind == 'data:image/webp;base64'
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (64, 48)
        assert image.convert('RGB').getpixel((30, 20)) == pytest.approx((0, 128, 128), abs=6)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60"><circle r="30"/></svg>'
    driver.page.set_input_files('#file', {'name': 'a.svg', 'mimeType': 'image/svg+xml', 'buffer': svg})
    driver.page.wait_for_selector('#notice-text:has-text("a.svg cannot be opened as a picture")')


def test_a_turned_picture_is_shown_upright(visit):
    driver = visit()
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new('RGB', (80, 40), 'teal').save(file, 'JPEG', exif=exif)
    driver.open('turned.jpg', file.getvalue(), 'image/jpeg')
    driver.drag([(4, 4), (30, 70)])
    assert driver.marks()[0]['box'] == pytest.approx([4, 4, 30, 70], abs=1)


@pytest.mark.parametrize('kind', ['drop', 'paste'])
def test_pictures_are_dropped_and_pasted(visit, photo, kind):
    driver = visit()
    is_taken = driver.page.evaluate(GIVE, [kind, base64.b64encode(photo).decode()])
    assert is_taken  # or else the browser would open it in place of the page
    driver.page.wait_for_selector('#picture[alt="photo.png"]')
    driver.drag([(100, 80), (300, 240)])
    picture = driver.ask()['messages'][0]['content'][0]
    assert picture['visual_prompts'][0]['box'] == pytest.approx([100, 80, 300, 240], abs=1)
    assert base64.b64decode(picture['image_url']['url'].partition(',')[2]) == photo


def test_text_remains_text(visit, photo):
    driver = visit()
    data, text = base64.b64encode(photo).decode(), 'https://example.org/photo.png'
    for kind in ('paste', 'drop'):
        assert not driver.page.evaluate(GIVE, [kind, data, text, '#question'])  # programs add its picture
    assert driver.page.evaluate(GIVE, ['drop', '', text])  # or else the browser would open the link
    assert not driver.page.evaluate(GIVE, ['paste', '', text])
    driver.open('next.png', photo)
    assert driver.page.evaluate(GIVE, ['paste', data, '', '#question'])
    driver.page.wait_for_selector('#picture[alt="photo.png"]')


def test_marks_that_were_saved_are_imported(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag([(100, 80), (300, 240)])
    for tool, color, points in (
        ('arrow', 'aqua', [(500, 400)]),
        ('mask', 'gold', [(400, 60), (480, 70), (470, 160), (420, 150)]),
    ):
        driver.choose('tool', tool)
        driver.choose('color', color)
        driver.drag(points)
    marks = driver.marks()
    driver.choose('mode', 'regions')
    with driver.page.expect_download() as download:
        driver.page.click('#export-json')
    saved = download.value.path().read_bytes()
    assert json.loads(saved)['picture'] == {'name': 'photo.png', 'width': 640, 'height': 480}
    driver.page.click('#clear')
    file = {'name': 'regions.json', 'mimeType': 'application/json', 'buffer': saved}
    driver.page.set_input_files('#import-file', file)
    driver.page.wait_for_selector('#drawn > :nth-child(3)')
    driver.choose('mode', 'ask')
    assert driver.marks() == marks
