"""Runs work on threads: in the background, or ahead of the caller that consumes its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from threading import Thread
from threading import enumerate as running_threads
from typing import TypeVar

T = TypeVar('T')
R = TypeVar('R')
NAME = 'vipllava background'  # of the threads of `background`


def background(work: Callable[[], T]) -> Callable[..., T]:
    """Starts `work` on a daemon thread; returns a function that waits for its result or raises its error.

    That function may be given a number of seconds, after which it raises TimeoutError.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name=NAME).start()
    return future.result


def in_background() -> bool:
    """Whether work in the background has not ended."""
    return any(thread.name == NAME for thread in running_threads())


def map_ahead(pool: Executor, call: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """`map` in a pool, with results in order; starts at most `count` calls ahead of the caller."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
