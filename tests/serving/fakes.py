"""An engine without a model, and an endpoint to ask it: what a server needs to be tested in milliseconds."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from tests.conftest import SMALL
from tests.makers import write_processor_files
from vipllava_jax.engine.question import Question, QueueFull, encode
from vipllava_jax.engine.reply import Reply
from vipllava_jax.engine.stats import Counts, Stats
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.protocol.endpoints import Endpoint
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.requests import Request

PATH = '/v1/chat/completions'
WORDS = (355, 357, 364, 365, 373, 374, 385, 386, 387, 388, 389)  # ids of words, so that each shows at once


def make_model(files: Path) -> Model:
    """A model without weights, for what happens before and after the computation."""
    image = write_processor_files(files)
    text = dataclasses.replace(SMALL.text, vocab=400, context=1024)
    cfg = dataclasses.replace(SMALL, text=text, image_token=image, pad=image + 1)
    return Model({}, cfg, Processor.load(files).for_model(cfg))


def next_id(reply: Reply) -> int:
    """The next id of an answer, which depends on the question alone."""
    return WORDS[(int(reply.ends.lengths[0]) + int(reply.question.ids.sum())) % len(WORDS)]


class FakeEngine:
    """Answers `rows` questions at a time, with an id for each of them every `pace` seconds.

    An answer ends with `length` ids, or else with as many as were asked for.
    """

    def __init__(
        self, model: Model, rows: int = 4, queue: int = 8, pace: float = 0.001, length: float = float('inf')
    ):
        self.model, self.rows, self.queue, self.pace, self.length = model, rows, queue, pace, length
        self.open: list[Reply] = []
        self.error: BaseException | None = None
        self.is_closed = False
        self.going = threading.Event()  # cleared by tests to hold everything up
        self.going.set()
        self.changed = threading.Condition()
        self.asked, self.cancelled = 0, 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, question: Question) -> Reply:
        encoded = encode(question, self.model)
        with self.changed:
            if self.error or self.is_closed:
                raise RuntimeError('the engine has failed or is closed')
            if len(self.open) >= self.rows + self.queue:
                raise QueueFull('the queue is full')
            reply = Reply(encoded, self.model.processor, self._ended)
            self.open.append(reply)
            self.asked += 1
            self.changed.notify_all()
        return reply

    def _ended(self, reply: Reply) -> None:
        with self.changed:
            if reply in self.open:
                self.open.remove(reply)
                self.cancelled += reply.cancelled

    def _run(self) -> None:
        while not self.is_closed:
            with self.changed:
                self.changed.wait_for(lambda: self.open or self.is_closed)
                running = self.open[: self.rows]
            self.going.wait(1)
            for reply in running:
                if self.going.is_set() and not self.error:
                    is_last = reply.ends.lengths[0] + 1 >= self.length
                    reply.push(0, [next_id(reply)], time.perf_counter(), is_whole=is_last)
            time.sleep(self.pace)

    def fail(self, error: BaseException) -> None:
        """Breaks down, as an engine does whose device has failed."""
        self.error = error
        self.fail_open(error)

    def fail_open(self, error: BaseException) -> None:
        for reply in [*self.open]:
            reply.fail(error)

    def stats(self) -> Stats:
        running = min(len(self.open), self.rows)
        return Stats(
            rows=self.rows,
            long_rows=0,
            slots=1024,
            running=running,
            waiting=len(self.open) - running,
            preparing=0,
            prefix_bytes=0,
            **vars(Counts(cancelled=self.cancelled)),
        )

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()
        self.going.set()


class FakeRequest(Request):
    """A request with as many questions as prompts."""

    prompts: tuple[str, ...] = ('What?',)
    tokens: int = 5
    stream: bool = False
    template: str | None = None
    urls: tuple[str, ...] = ()
    fault: str = ''  # 'exchange' or 'body': where a fault of the server is
    pad: int = 0  # characters that are added to each event and to the body
    drawing: float = 0  # seconds that an event takes, as if a picture were drawn


class FakeExchange:
    """Writes texts and nothing else."""

    def __init__(self, request: FakeRequest, served: Any, id: str, fetched: Any):
        if request.fault == 'exchange':
            raise ZeroDivisionError('a \x1b[31mfault\x1b[0m')
        if any(url not in fetched for url in request.urls):
            raise ApiError(400, 'pictures are given as data URIs', 'urls')
        settings = GenerationSettings(max_new_tokens=request.tokens)
        template = request.template or served.template
        self.questions = tuple(
            Question(prompt, settings=settings, template=template, keep_images=request.drawing > 0)
            for prompt in request.prompts
        )
        self.stream, self.id, self.fault, self.pad = request.stream, id, request.fault, 'x' * request.pad
        self.drawing = request.drawing
        self.params = {'images': 'urls'}

    def body(self, replies: Any) -> dict[str, Any]:
        if self.fault == 'body':
            raise ZeroDivisionError('a fault')
        return {'id': self.id, 'texts': [reply.result()[0].text for reply in replies], 'pad': self.pad}

    def opening(self) -> list[dict[str, Any]]:
        return [{'id': self.id}]

    def events(self, index: int, reply: Reply, piece: Any) -> list[dict[str, Any]]:
        time.sleep(self.drawing)
        return [{'index': index, 'text': piece.text, 'pad': self.pad}] if piece.text else []

    def closing(self, replies: Any) -> list[dict[str, Any]]:
        return [{'tokens': sum(len(reply.result()[0].ids) for reply in replies)}]


def fake_protocol(patch: Any) -> None:
    """Puts the fake endpoint in the place of the real ones; `patch` is `setattr` or that of monkeypatch."""
    from vipllava_jax.serving import answering, app

    patch(app, 'ENDPOINTS', {PATH: Endpoint(FakeRequest, FakeExchange)})
    patch(answering, 'remote_urls', lambda request: tuple(request.urls))
