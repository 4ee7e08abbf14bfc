"""Work on threads, in the background and ahead of the caller."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vipllava_jax.threads import background, in_background, map_ahead


@pytest.mark.parametrize('count', [1, 2, 5])
def test_map_ahead_keeps_threads_busy_while_the_caller_works(count):
    started = [threading.Event() for _ in range(8)]

    def call(i: int) -> int:
        started[i].set()
        return i

    with ThreadPoolExecutor(count) as pool:
        for i in map_ahead(pool, call, range(8), count):
            assert all(event.wait(10) for event in started[: i + 1 + count])
            assert not any(event.is_set() for event in started[i + 1 + count :])
            last = i
    assert last == 7


def test_background_work_returns_its_result_or_raises_its_error():
    assert background(lambda: 3)() == 3
    with pytest.raises(ZeroDivisionError):
        background(lambda: 1 // 0)()


def test_background_work_is_known_to_run_until_it_ends():
    event = threading.Event()
    wait = background(event.wait)
    with pytest.raises(TimeoutError):
        wait(0.01)
    assert in_background()
    event.set()
    assert wait()
