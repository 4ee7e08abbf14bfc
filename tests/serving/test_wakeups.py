"""Functions are called in the event loop, and many of one moment interrupt it once."""

import asyncio
import threading

import pytest

from vipllava_jax.serving.wakeups import Wakeups


def test_calls_of_one_moment_interrupt_the_loop_once():
    async def main() -> tuple[list[int], int]:
        loop, wakeups, called, interruptions = asyncio.get_running_loop(), Wakeups(), [], []
        plain = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *work: (interruptions.append(1), plain(*work))
        thread = threading.Thread(
            target=lambda: [wakeups.call(loop, lambda n=n: called.append(n)) for n in range(50)]
        )
        thread.start()
        thread.join()  # the loop cannot run meanwhile
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wakeups.call(loop, lambda: called.append(50))
        await asyncio.sleep(0.01)
        return called, len(interruptions)

    assert asyncio.run(main()) == ([*range(51)], 2)


def test_a_loop_that_has_ended_is_an_error_each_time():
    loop, wakeups = asyncio.new_event_loop(), Wakeups()
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            wakeups.call(loop, lambda: None)
