"""Pictures from the camera, which is a device that Chromium makes up."""

import base64
import io

import pytest
from PIL import Image

pytestmark = pytest.mark.page
TRACK = 'track = document.getElementById("video").srcObject.getTracks()[0]'
HAS_ENDED = 'track.readyState === "ended" && document.getElementById("video").srcObject === null'


def open_camera(driver):
    driver.page.click('#camera-open')
    driver.wait_until('document.getElementById("video").videoWidth > 0')
    driver.page.evaluate(TRACK)


def test_a_picture_is_taken_and_asked_about(visit):
    driver = visit()
    driver.context.grant_permissions(['camera'])
    open_camera(driver)
    size = driver.page.evaluate('[video.videoWidth, video.videoHeight]')
    driver.page.click('#take')
    driver.page.wait_for_selector('#picture[alt="a picture of the camera"]')
    driver.wait_until(HAS_ENDED)
    assert driver.page.is_hidden('#camera')
    driver.drag([(20, 30), (200, 150)])
    picture, _ = driver.ask()['messages'][0]['content']
    assert picture['visual_prompts'][0]['box'] == pytest.approx([20, 30, 200, 150], abs=1)
    data = picture['image_url']['url'].partition(',')[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert list(image.size) == size
        assert max(high for _, high in image.convert('RGB').getextrema()) > 100  # it is not black
    assert driver.text('.answer')


def test_the_camera_stops_when_it_is_closed(visit):
    driver = visit()
    driver.context.grant_permissions(['camera'])
    open_camera(driver)
    driver.page.keyboard.press('Escape')
    driver.wait_until(HAS_ENDED)
    assert driver.page.get_attribute('#picture', 'alt') == 'the example picture'


def test_a_camera_that_is_not_allowed_is_told(visit):
    driver = visit()
    driver.page.click('#camera-open')
    driver.page.wait_for_selector('#notice:not([hidden])')
    assert driver.text('#notice-text').startswith('The camera cannot be used. Allow it in the browser')
    assert driver.page.is_hidden('#camera')
    driver.page.click('#dismiss')
    assert driver.page.is_hidden('#notice')
