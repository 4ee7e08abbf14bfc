"""A process of its own that draws previews, so that they never delay answers."""

import threading
from concurrent.futures import Future

from vipllava_jax.engine.picture_worker import Prepared
from vipllava_jax.engine.pictures import Pictures
from vipllava_jax.engine.question import Question
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.protocol.errors import ApiError

MAX_WAITING = 16  # previews that wait for the process


class Previews:
    """Draws marks and resizes pictures as the engine does, one after another; thread-safe."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pictures: Pictures | None = None  # from the first preview on
        self._lock, self._waiting, self._closed = threading.Lock(), 0, False

    def submit(self, question: Question, settings: ImageSettings) -> Future[Prepared]:
        """The picture of a question, when it is ready; the future raises QuestionError if it cannot be.

        Raises ApiError (429) if too many wait.
        """
        with self._lock:
            if self._waiting >= MAX_WAITING:
                message = f'{self._waiting} previews wait: send it again later'
                raise ApiError(429, message, code='queue_full', retry_after=1)
            if self._closed:
                raise ApiError(503, 'the server is shutting down', code='shutting_down', retry_after=5)
            if self._pictures is None:
                self._pictures = Pictures(settings, 1, self._max_pixels)
            future = self._pictures.submit(question)
            self._waiting += 1
        future.add_done_callback(self._ended)
        return future

    def close(self) -> None:
        """Ends the process; what it has not drawn is cancelled."""
        with self._lock:
            self._closed, pictures = True, self._pictures
        if pictures:
            pictures.close()

    def _ended(self, future: Future[Prepared]) -> None:
        with self._lock:
            self._waiting -= 1
