"""A check that tests end the threads of engines and of pools of pictures."""

import threading
from collections.abc import Iterator

import pytest


def running() -> set[threading.Thread]:
    """The threads of the package, and of the fake engines of tests."""
    return {thread for thread in threading.enumerate() if thread.name.startswith('vipllava')}


@pytest.fixture(scope='module', autouse=True)
def threads_end() -> Iterator[None]:
    """Fails if the tests of a module leave an engine or a pool of pictures open."""
    before = running()
    yield
    left = running() - before
    for thread in left:
        thread.join(1)
    assert not [thread.name for thread in left if thread.is_alive()]
