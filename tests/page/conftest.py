"""The page in a browser, in front of a server whose engine has no model."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from PIL import Image

from tests.page.driving import PATIENCE, Driver
from tests.serving.fakes import FakeEngine, make_model
from tests.serving.live import Live, live_server
from vipllava_jax.engine import pictures
from vipllava_jax.serving.options import ServerOptions

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
ARGUMENTS = ['--no-sandbox', '--use-fake-device-for-media-stream']
ADVICE = (
    "the tests of the page need a browser: apt-get install chromium, and pip install -e '.[test-page]' "
    '(CONTRIBUTING.md says more)'
)


@pytest.fixture(scope='session')
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.fail(ADVICE)
    if path is None:
        pytest.fail(ADVICE)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope='session')
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp('processor'))


@pytest.fixture(autouse=True)
def patience(monkeypatch) -> None:
    """A picture may take long, because the machine may have other things to do."""
    monkeypatch.setattr(pictures, 'SECONDS', float(PATIENCE))


@pytest.fixture
def serve(model) -> Iterator[Any]:
    """Starts servers, with options and with those of the engine in `engine`; they end after the test."""
    with ExitStack() as stack:

        def start(engine: dict[str, Any] | None = None, wait: bool = True, **options: Any) -> Live:
            chosen = ServerOptions('tiny', port=0, **options)
            numbers = {'pace': 0.002, 'length': 30, **(engine or {})}
            server = live_server(chosen, lambda _: FakeEngine(model, **numbers), wait)
            return stack.enter_context(server)

        yield start


@pytest.fixture
def visit(browser, serve) -> Iterator[Any]:
    """Opens the page of a new server, or of a given one; afterwards, it must have kept to its policy."""
    opened: list[Driver] = []

    def open_page(live: Live | None = None, ready: bool = True, **context: Any) -> Driver:
        driver = Driver(browser, live or serve(), **context)
        opened.append(driver)
        if ready:
            driver.wait_until_ready()
        return driver

    yield open_page
    for driver in opened:
        driver.context.close()
        assert not driver.violations
        assert all(url.startswith((driver.url, 'data:', 'blob:')) for url in driver.requested)


@pytest.fixture(scope='session')
def photo() -> bytes:
    """A picture of 640x480 pixels as a PNG."""
    file = io.BytesIO()
    Image.linear_gradient('L').resize((640, 480)).convert('RGB').save(file, 'PNG')
    return file.getvalue()


@pytest.fixture(scope='session')
def coco(tmp_path_factory) -> Any:
    """A file of annotations of the photo at half its size, of which one is not on it and one has no area."""
    path = tmp_path_factory.mktemp('coco') / 'instances.json'
    boxes = [(1, [10, 20, 100, 50]), (1, [200, 100, 60, 80]), (2, [0, 0, 9, 9]), (1, [5, 5, 0, 0])]
    data = {
        'images': [{'id': 1, 'file_name': 'photo.png', 'width': 320, 'height': 240}, {'id': 2}],
        'annotations': [{'image_id': image, 'bbox': box} for image, box in boxes],
    }
    path.write_text(json.dumps(data))
    return path
