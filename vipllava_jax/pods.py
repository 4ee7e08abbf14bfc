"""Joins the processes of several hosts into one program, with `jax.distributed`.

A mesh may then hold the devices of all hosts. Every process runs the same program, and must call the same
functions of jax in the same order. Only the first process prints and writes files.

jax is imported when it is needed: joining must come before anything else that uses a device.
"""

import contextlib
import json
import os
import secrets
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from vipllava_jax.clusters import Place, check_port, explain_absence, find_place
from vipllava_jax.messages import one_line, printable

NEVER = 1 << 24  # seconds until jax would abort the process; `_within` raises an error before
STAY = 5.0  # seconds that process 0 waits after its time-out, so that the others can still reach it
MESSAGE_BYTES = 2048  # the most that a process sends in `gather`
used = False  # whether `join` has joined this process with others


class PodError(ValueError):
    """An error in one of the processes, raised in all; in that process, the original error is its cause."""


def join(
    mode: str = 'auto',
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: int = 300,
    heartbeat: int = 100,
) -> Place | None:
    """Joins this process with the others of its job, before any device is used; None if it runs alone.

    Values that are not given come from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from
    Slurm, Open MPI, Kubernetes or Cloud TPU as jax detects them. `auto` joins if there are several processes,
    `on` requires it, and `off` never joins. If a process sends no heartbeat for `heartbeat` seconds, jax ends
    the others.

    Raises ValueError for a value that is invalid or missing, and if the others do not join within `timeout`
    seconds; the process should then exit.
    """
    given = {'coordinator': coordinator, 'count': count, 'index': index}
    place = find_place(mode, given, os.environ, timeout)
    if place is None or has_joined():
        return place
    if place.index == 0 and 'JAX_COORDINATOR_BIND_ADDRESS' not in os.environ:
        check_port(place)
    global used
    used = True
    _meet(place, timeout, heartbeat)
    return place


def _meet(place: Place, timeout: int, heartbeat: int) -> None:
    """Connects the processes and finds their devices; ValueError if that fails or takes too long."""
    import jax

    # Python handles SIGTERM; jax's service would swallow it
    jax.config.update('jax_enable_preemption_service', False)
    connect = partial(
        jax.distributed.initialize,
        place.coordinator,
        place.count,
        place.index,
        place.local_devices,
        cluster_detection_method='deactivate',
        initialization_timeout=NEVER,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=heartbeat,
    )
    late = 0.0 if place.index == 0 else STAY / 2
    try:
        _within(timeout + late, connect)
    except TimeoutError:
        message = explain_absence(place, timeout, os.environ)
        time.sleep(STAY - 2 * late)
        raise ValueError(message) from None
    except RuntimeError as error:
        raise ValueError(f'{place.name} cannot join at {place.coordinator}: {one_line(error)}') from None
    try:
        _within(timeout, jax.devices)  # all processes take part
    except TimeoutError:
        text = f'{place.name}: all have joined, but their devices were not found within {timeout} s'
        raise ValueError(f'{text}: is a device in use by another program, or slower to start?') from None
    except RuntimeError as error:
        raise ValueError(f'{place.name} finds no devices: {one_line(error)}') from None


def _within(seconds: float, work: Callable[[], Any]) -> None:
    """Calls `work` in a thread; raises its error, or TimeoutError if it takes longer.

    The thread is then left running. In the main thread, `work` could not be interrupted.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    future.result(seconds)


def has_joined() -> bool:
    """Whether this process has joined others, here or by `jax.distributed.initialize`."""
    jax: Any = sys.modules.get('jax')
    return jax is not None and jax.distributed.is_initialized()


def process_index() -> int:
    """The index of this process among those that have joined; 0 if it is alone."""
    if not has_joined():
        return 0
    import jax

    return jax.process_index()


def process_count() -> int:
    """The number of processes that have joined; 1 if this one is alone."""
    if not has_joined():
        return 1
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return process_index() == 0


def banner(place: Place) -> str:
    """'process 2 of 4, 4 local of 16 devices'; process 0 adds the coordinator, and how it was found."""
    import jax

    name = f'process {jax.process_index()} of {jax.process_count()}'
    text = f'{name}, {jax.local_device_count()} local of {jax.device_count()} devices'
    if place.index:
        return text
    return f'{text} ({jax.devices()[0].platform}), joined at {place.coordinator}, found by {place.found_by}'


def leave() -> None:
    """Waits until all processes have called this, and ends the connection between them."""
    if has_joined():
        import jax

        jax.distributed.shutdown()


def gather(value: Any) -> list[Any]:
    """A short JSON value -> those of all processes, by index; all processes must call it."""
    if process_count() == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    if len(text) > MESSAGE_BYTES:
        raise ValueError(f'gather: a value of {len(text)} bytes, expected at most {MESSAGE_BYTES}')
    padded = np.frombuffer(text.ljust(MESSAGE_BYTES), np.uint8)
    return [json.loads(row.tobytes()) for row in np.asarray(multihost_utils.process_allgather(padded))]


def from_first(value: Any) -> Any:
    """A JSON value -> that of process 0; all processes must call it."""
    if process_count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    (size, *_) = gather(len(text))
    padded = np.zeros(size, np.uint8)
    padded[: len(text)] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that all processes enter; an error in one of them is raised in all, as a PodError.

    A RuntimeError, the type of jax's errors, is raised at once in its process only: the others may be waiting
    for it in a program, and jax ends them when it has ended. A PodError has been raised in all already.
    """
    if process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except (RuntimeError, PodError):
        raise
    except Exception as caught:
        error = caught
    messages = gather(None if error is None else printable(_message(error)))
    failed = [index for index, message in enumerate(messages) if message is not None]
    if failed:
        alike = len(failed) == len(messages) and len({*messages}) == 1
        message = messages[failed[0]]
        raise PodError(message if alike else f'process {failed[0]}: {message}') from error


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f'{error.filename}: {error.strerror}'
    return str(error) if isinstance(error, ValueError | OSError) else one_line(error)


def signal_of_any(number: int) -> int:
    """The number of the signal that this process received, or 0 -> the largest of all processes."""
    return max(gather(number))


def see_same_folder(folder: str | None) -> bool:
    """Whether process 0 can write to a folder and the others see its files; equal URLs are not checked."""
    name = from_first(f'.seen-{secrets.token_hex(8)}')
    if any(gather(folder is None or '://' in folder)):
        return len({*gather(zlib.crc32(repr(folder).encode()))}) == 1
    path = Path(folder or '', name)
    with contextlib.suppress(OSError):
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    gather(None)  # waits for process 0
    seen = gather(path.exists())
    with contextlib.suppress(OSError):
        if is_first():
            path.unlink(missing_ok=True)
    return all(seen)
