"""A pool of processes that open, mark and resize the pictures of questions."""

import atexit
import contextlib
import os
import queue
import re
import threading
import time
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from vipllava_jax.answering.prompts import place_marks
from vipllava_jax.engine.picture_process import PictureProcess, WorkerLost
from vipllava_jax.engine.picture_worker import PictureTask, Prepared, WorkerSettings, message_of, prepare
from vipllava_jax.engine.question import Question, QuestionError
from vipllava_jax.inputs.image_arrays import is_array
from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.messages import brief, listed

MAX_WORKERS = 16
SECONDS = 30.0  # the maximum for the pictures of one question
PATIENCE = 5.0  # seconds that closing waits for a picture which is being opened in this process

_opening = threading.Lock()  # two threads must not load the same PIL picture


class Pictures:
    """Prepares the pictures of questions in worker processes; a context manager, and thread-safe.

    Each process has one question at a time. One that crashes, or takes longer than 30 seconds, is replaced,
    and its question alone fails. The processes end when this one ends for any reason.
    """

    def __init__(
        self, image_settings: ImageSettings, workers: int | None = None, max_pixels: int | None = None
    ) -> None:
        """Starts `workers` processes: None is one less than the cores, at most 16; 0 is a thread here.

        Pictures have at most `max_pixels`; None is PIL's limit, beyond which a thread here does not go.
        """
        self.image_settings, self.max_pixels = image_settings, max_pixels
        self._tasks: queue.SimpleQueue[tuple[Question, Future[Prepared]] | None] = queue.SimpleQueue()
        self._closed, self._closing = threading.Event(), threading.Lock()
        count = default_workers() if workers is None else workers
        most = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        settings = WorkerSettings(image_settings, int(SECONDS) + 5, most)
        self.processes = [PictureProcess(settings) for _ in range(count)]
        workers_or_here: list[PictureProcess | None] = [*self.processes] or [None]
        self._threads = [
            threading.Thread(target=self._work, args=(process,), daemon=True, name='vipllava pictures')
            for process in workers_or_here
        ]
        atexit.register(self.close)  # otherwise the threads would block on their pipes
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, question: Question) -> 'Future[Prepared]':
        """The pictures of a question, when they are ready.

        The future raises QuestionError, which names the picture, if they cannot be prepared, and
        CancelledError if the pool is closed before. Raises RuntimeError if it is closed already.
        """
        future: Future[Prepared] = Future()
        if not question.images:
            side = self.image_settings.side
            future.set_result(Prepared(np.empty((0, side, side, 3), np.uint8), (), ()))
            return future
        with self._closing:
            if self._closed.is_set():
                raise RuntimeError('the pool of pictures is closed')
            self._tasks.put((question, future))
        return future

    def close(self) -> None:
        """Ends the processes; futures that are not complete raise CancelledError."""
        with self._closing:
            self._closed.set()
            for _ in self._threads:
                self._tasks.put(None)
        for process in self.processes:
            process.close()
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(end - time.monotonic(), 0))
        with contextlib.suppress(queue.Empty):  # what a thread that still waits for a file system has left
            while True:
                if entry := self._tasks.get_nowait():
                    entry[1].cancel()
        atexit.unregister(self.close)

    def _work(self, process: PictureProcess | None) -> None:
        """Prepares one question after another, until the pool is closed."""
        if process:
            with contextlib.suppress(OSError, WorkerLost):  # reported with the first question
                process.start()
        while (entry := self._tasks.get()) is not None:
            question, future = entry
            if self._closed.is_set():
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._prepared(question, process))
                except BaseException as error:
                    future.set_exception(error)
            del entry, question, future  # which hold pictures while this thread waits
        if process:
            process.end()

    def _prepared(self, question: Question, process: PictureProcess | None) -> Prepared:
        """The pictures of one question; QuestionError says why they cannot be prepared."""
        try:
            task = task_of(question)
            if process is None:
                return prepare(task, self.image_settings, self.max_pixels)
            found = process.prepare(task, SECONDS)
        except WorkerLost as error:
            if self._closed.is_set():
                raise CancelledError(str(error)) from None
            raise QuestionError(f'{listed(_names(question), 3)}: {error}', 'images') from None
        except Exception as error:
            raise QuestionError(message_of(error), 'images') from None
        if isinstance(found, str):
            raise QuestionError(found, 'images')
        return found


def default_workers() -> int:
    """One process less than this one has cores, at least 1 and at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores - 1))


def task_of(question: Question) -> PictureTask:
    """What a worker needs to know of a question; raises the errors of `place_marks` and `open_image`."""
    names = _names(question)
    placed = place_marks(question.marks, len(names))
    return PictureTask(
        tuple(_source(source, name) for source, name in zip(question.images, names, strict=True)),
        names,
        tuple(tuple(mark for index, mark in placed if index == i) for i in range(len(names))),
        question.fit,
    )


def _names(question: Question) -> tuple[str, ...]:
    """What messages call the pictures of a question."""
    several = len(question.images) > 1
    return tuple(
        brief(os.fsdecode(source), 200)
        if isinstance(source, str | os.PathLike)
        else (f'image {number}' if several else 'the image')
        for number, source in enumerate(question.images, 1)
    )


def _source(source: ImageSource, name: str) -> ImageSource:
    """A picture in a form that can be sent to another process, which may have another current folder."""
    if isinstance(source, Image.Image):  # which may read a file that is open in this process
        with _opening:
            return open_image(source, name)
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if is_array(source):
        return np.asarray(source)
    if not isinstance(source, str | os.PathLike):
        return source
    path = os.fsdecode(source)
    return path if not path or re.match('[a-z]+:', path, re.IGNORECASE) else os.path.abspath(path)
