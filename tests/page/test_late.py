"""What arrives late stays with what it belongs to, whatever has changed on the page meanwhile."""

import json

import pytest

from tests.page.driving import fill_queue

pytestmark = pytest.mark.page
QUESTION = 'What is {mark}?'
OPEN = """async () => {
  const blob = await (await fetch('/page/example.png')).blob();
  await createImageBitmap(blob);
  const reader = new FileReader();
  reader.readAsDataURL(blob);
  await new Promise((resolve) => (reader.onload = () => setTimeout(resolve)));
}"""  # what the page does with a picture that arrives; when it ends, the page has ended with an earlier one
PIXEL = 'data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7'


def saved(driver, button='#export-json'):
    with driver.page.expect_download() as download:
        driver.page.click(button)
    return json.loads(download.value.path().read_text())


def hold(driver, path):
    """Keeps the requests of a path from the server; returns the list of them."""
    held = []
    driver.page.route(path, lambda route: held.append(route))
    return held


def wait_for(driver, held):
    while not held:
        driver.page.wait_for_timeout(20)
    return held.pop()


@pytest.fixture
def asked(visit, serve, photo):
    """The page that waits for answers about two marks."""
    live = serve()
    driver = visit(live)
    driver.open('photo.png', photo)
    driver.drag([(100, 80), (200, 180)])
    driver.drag([(300, 200), (400, 300)])
    driver.choose('mode', 'regions')
    driver.page.fill('#question', QUESTION)
    live.engine.going.clear()
    driver.page.click('#ask')
    live.wait(lambda: len(live.engine.open) == 2)
    return driver


def finish(driver):
    driver.live.engine.going.set()
    driver.page.wait_for_selector('#stop', state='hidden')


def delete(driver):
    driver.drag([(150, 130)])  # which selects the first mark
    driver.page.focus('#canvas')
    driver.page.keyboard.press('Delete')


def recolor(driver):
    driver.drag([(150, 130)])
    driver.choose('color', 'blue')


def undo(driver):
    driver.page.click('#undo')


def draw_another(driver):
    driver.drag([(450, 350), (500, 400)])


@pytest.mark.parametrize('change', [delete, recolor, undo, draw_another])
def test_answers_stay_with_the_marks_that_were_asked_about(asked, change):
    change(asked)
    finish(asked)
    answers = asked.page.locator('#conversation li span:last-child').all_inner_texts()
    assert all(answers)
    assert not any('answer' in region for region in saved(asked)['regions'])
    assert not any('caption' in region for region in saved(asked, '#export-coco')['annotations'])
    assert asked.page.locator('#conversation ol.old').count() == 1
    asked.page.click('#redo' if change is undo else '#undo')
    asked.page.fill('#question', 'Another question about {mark}?')
    found = saved(asked)
    assert [region['answer'] for region in found['regions']] == answers
    assert found['question'] == QUESTION
    assert asked.page.locator('#conversation ol.old').count() == 0


def test_what_is_saved_before_the_answers_are_complete_has_none(asked):
    live = asked.live
    live.engine.pace, live.engine.length = 0.3, 1000
    live.engine.going.set()
    asked.page.wait_for_selector('#conversation li span:last-child:not(:empty)')
    assert not any('answer' in region for region in saved(asked)['regions'])
    asked.page.click('#stop')
    asked.page.wait_for_selector('#stop', state='hidden')
    assert not any('answer' in region for region in saved(asked)['regions'])


@pytest.mark.parametrize('other', ['picture', 'conversation'])
def test_an_answer_is_no_part_of_another_conversation(visit, serve, photo, other):
    live = serve({'pace': 0.3, 'length': 1000})
    driver = visit(live)
    driver.page.click('#ask')
    driver.page.wait_for_selector('.answer:not(:empty)')
    if other == 'picture':
        driver.open('photo.png', photo)
    else:
        driver.page.click('#anew')
    live.wait(live.is_idle)  # the answer is not waited for any more
    assert driver.text('#conversation') == ''
    live.engine.pace, live.engine.length = 0.001, 5
    assert len(driver.ask('And now?')['messages']) == 1


def test_a_picture_that_arrives_late_does_not_replace_a_later_one(visit, photo):
    driver = visit()
    held = hold(driver, '**/page/example.png')
    driver.page.click('#example')
    late = wait_for(driver, held)
    driver.open('photo.png', photo)
    driver.drag([(100, 80), (200, 180)])
    with driver.page.expect_response('**/page/example.png'):
        late.continue_()
    driver.page.unroute('**/page/example.png')
    driver.page.evaluate(OPEN)
    assert driver.page.get_attribute('#picture', 'alt') == 'photo.png'
    assert driver.marks()[0]['box'] == pytest.approx([100, 80, 200, 180], abs=1)


def test_the_example_does_not_replace_what_was_opened_while_the_page_loaded(visit, serve, photo):
    driver = visit(serve())
    held = hold(driver, '**/page/about.json')
    driver.page.reload()
    late = wait_for(driver, held)
    driver.page.click('#zoom-in')
    assert driver.page.is_disabled('#code-open')
    driver.choose('mode', 'regions')
    assert driver.page.is_hidden('#files')
    driver.choose('mode', 'ask')
    driver.page.set_input_files('#file', {'name': 'photo.png', 'mimeType': 'image/png', 'buffer': photo})
    late.continue_()
    driver.page.wait_for_selector('#picture[alt="photo.png"]')
    driver.wait_until_ready()
    assert driver.page.get_attribute('#picture', 'alt') == 'photo.png'
    assert driver.marks() == []


def test_the_preview_of_an_earlier_picture_is_not_shown(visit, photo):
    driver = visit()
    held = hold(driver, '**/v1/preview')
    driver.drag([(30, 30), (90, 90)])
    earlier = wait_for(driver, held)
    driver.open('photo.png', photo)
    assert driver.page.is_hidden('#sees-image')
    assert driver.page.get_attribute('#sees', 'aria-busy') == 'true'
    wait_for(driver, held).continue_()
    driver.page.wait_for_selector('#sees[aria-busy=false] #sees-image')
    earlier.fulfill(json={'image': PIXEL, 'warnings': []})
    driver.page.evaluate("fetch('/ready').then((response) => response.text())")  # which arrives later
    assert driver.page.get_attribute('#sees-image', 'src').startswith('data:image/png')


def test_undo_during_a_gesture_ends_it(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag([(100, 80), (200, 180)])
    driver.drag([(300, 200), (400, 300)])
    driver.choose('tool', 'select')
    mouse, places = driver.page.mouse, driver.on_screen([(350, 250), (370, 250), (390, 250)])
    mouse.move(*places[0])
    mouse.down()
    mouse.move(*places[1])
    driver.page.keyboard.press('Control+z')  # which takes the mark away that is being moved
    mouse.move(*places[2])
    mouse.up()
    boxes = [mark['box'] for mark in driver.marks()]
    assert boxes == [pytest.approx([100, 80, 200, 180], abs=1)]


def test_one_question_is_asked_at_a_time(visit, serve):
    live = serve({'rows': 1, 'queue': 1}, queue=1)
    driver = visit(live)
    clients = fill_queue(live)
    driver.page.click('#ask')
    driver.page.wait_for_selector('article button:enabled')
    for client in clients:
        client.close()
    live.wait(lambda: not live.server.open)
    driver.page.click('#ask')
    driver.page.wait_for_selector('#stop')
    assert driver.page.is_disabled('article button')
    finish(driver)
    driver.page.click('article button')
    driver.page.wait_for_selector('#stop', state='hidden')
    assert driver.page.locator('.answer:not(:empty)').count() == 2
    assert driver.page.locator('.error').count() == 0
