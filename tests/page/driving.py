"""Drives the page in a browser as its users do: by mouse, touch and keys."""

import time
from collections.abc import Sequence
from typing import Any

from tests.serving.live import Live

Point = tuple[float, float]
ASKED = '/v1/chat/completions'
VIOLATION = 'Content Security Policy'
PATIENCE = 180  # seconds, because the machine may have other things to do


class Driver:
    """One page; places are in pixels of its picture."""

    def __init__(self, browser: Any, live: Live, **context: Any) -> None:
        self.live, self.url = live, f'http://127.0.0.1:{live.port}'
        self.context = browser.new_context(**{'viewport': {'width': 1200, 'height': 800}, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.session = self.context.new_cdp_session(self.page)
        self.requested: list[str] = []
        self.violations: list[str] = []
        self.page.on('request', lambda request: self.requested.append(request.url))
        self.page.on('console', self._hear)
        self.page.on('pageerror', lambda error: self.violations.append(str(error)))
        self.page.goto(self.url)

    def _hear(self, message: Any) -> None:
        if VIOLATION in message.text:
            self.violations.append(message.text)

    def wait_until_ready(self) -> None:
        self.page.wait_for_selector('body[data-phase=ready] #sees-image[src^=data]')

    def open(self, name: str, data: bytes, kind: str = 'image/png') -> None:
        self.page.set_input_files('#file', {'name': name, 'mimeType': kind, 'buffer': data})
        self.page.wait_for_selector(f'#picture[alt="{name}"]')
        self.wait_until('document.getElementById("picture").complete')

    def wait_until(self, expression: str, seconds: float = PATIENCE) -> None:
        """Waits until an expression is true; the page's policy forbids that the page evaluates it."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f'not true after {seconds} s: {expression}'
            self.page.wait_for_timeout(50)

    def choose(self, name: str, value: str) -> None:
        """Chooses a tool, a colour or a mode."""
        self.page.check(f'[name={name}][value="{value}"]')

    def on_screen(self, points: Sequence[Point]) -> list[Point]:
        """Places of the picture -> where they are shown, from the place of the picture itself."""
        box = self.page.locator('#picture').bounding_box()
        width = self.page.evaluate('document.getElementById("picture").naturalWidth')
        scale = box['width'] / width
        return [(box['x'] + x * scale, box['y'] + y * scale) for x, y in points]

    def drag(self, points: Sequence[Point], by: str = 'mouse') -> None:
        """Presses at the first point, and moves through the others, by mouse, touch or pen."""
        places = self.on_screen(points)
        events = ('touchStart', 'touchMove', 'touchEnd')
        if by != 'touch':
            events = ('mousePressed', 'mouseMoved', 'mouseReleased')
            self._point(by, 'mouseMoved', places[0])
        self._point(by, events[0], places[0])
        for place in places[1:]:
            self._point(by, events[1], place)
        self._point(by, events[2], places[-1])

    def _point(self, by: str, kind: str, place: Point) -> None:
        at = {'x': place[0], 'y': place[1]}
        if by == 'touch':
            points = [] if kind == 'touchEnd' else [at]
            self.session.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})
            return
        is_up = kind == 'mouseReleased'
        button = {'button': 'left', 'buttons': 0 if is_up else 1, 'clickCount': 1}
        self.session.send('Input.dispatchMouseEvent', {'type': kind, 'pointerType': by, **at, **button})

    def ask(self, question: str = 'What is {mark}?') -> dict[str, Any]:
        """Asks, waits for the answer, and returns the request as it was posted."""
        self.page.fill('#question', question)
        with self.page.expect_request(f'**{ASKED}') as asked:
            self.page.click('#ask')
        self.page.wait_for_selector('#stop', state='hidden')
        return asked.value.post_data_json

    def marks(self) -> list[dict[str, Any]]:
        """The marks as a question posts them."""
        return self.ask('What is this?')['messages'][0]['content'][0]['visual_prompts']

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


def fill_queue(live: Live) -> list[Any]:
    """Holds up an engine of one row and a queue of one, and fills both -> the clients that have asked."""
    live.engine.going.clear()
    message = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'What?'}]}
    clients = [live.send(**message) for _ in range(2)]
    live.wait(lambda: live.server.open == 2)
    return clients
