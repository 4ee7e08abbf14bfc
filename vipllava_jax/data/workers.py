"""Runs tasks in worker processes; the results are in the order of the tasks."""

import atexit
import contextlib
import fcntl
import io
import itertools
import pickle
import queue
import struct
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np

# Not multiprocessing: its processes run the script of the caller again, which may import jax, or train.
WORKER_CODE = (
    'import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); '
    'from vipllava_jax.data.workers import serve; serve()'
)
TASKS_AHEAD = 2  # tasks sent to a process in advance, so that it never waits for the next one
PIPE_BYTES = 1 << 20  # with the default, 65,536, reading a large batch takes three times the CPU time


def map_in_order(
    work: Callable[[Any], Any], tasks: Iterable[Any], workers: int, results_ahead: int = 2
) -> Generator[Any]:
    """Yields work(task) for each task, in order; at most `results_ahead` results are computed ahead.

    Without workers the tasks run in this process. Work and tasks are pickled; an error in a worker is raised
    here. The processes end when the iterator ends or is closed, and when this process ends for any reason.
    """
    if not workers:
        yield from map(work, tasks)
        return
    results: queue.Queue[Any] = queue.Queue(results_ahead)
    closed = threading.Event()
    processes: list[_Process] = []
    thread = threading.Thread(target=_collect, args=(processes, work, tasks, results, closed), daemon=True)

    def end() -> None:
        closed.set()
        for process in processes:
            process.kill()
        if thread.ident:
            thread.join()
        for process in processes:
            process.close()

    atexit.register(end)  # for an iterator that was not closed: later the thread would block on its pipe
    try:
        for _ in range(workers):
            processes.append(_Process())
        thread.start()
        while (result := results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result[0]
    finally:
        atexit.unregister(end)
        end()


def _collect(
    processes: list['_Process'],
    work: Callable[[Any], Any],
    tasks: Iterable[Any],
    results: 'queue.Queue[Any]',
    closed: threading.Event,
) -> None:
    """Distributes tasks in turn; queues the results, each in a tuple, and at the end None or an error."""

    def put(result: Any) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                return results.put(result, timeout=0.1)

    busy: deque[_Process] = deque()
    try:
        for process in processes:
            process.send(sys.path)
            process.send(work)
        for process, task in zip(itertools.cycle(processes), tasks, strict=False):
            process.send(task)
            busy.append(process)
            if len(busy) == TASKS_AHEAD * len(processes):
                put((busy.popleft().receive(),))
            if closed.is_set():
                return
        while busy and not closed.is_set():
            put((busy.popleft().receive(),))
        put(None)
    except BaseException as error:
        put(error)


class _Process:
    """A worker process, which communicates by its standard input and output."""

    def __init__(self) -> None:
        # In a separate process group, so that Ctrl-C in the terminal does not reach it.
        self.process = subprocess.Popen(
            [sys.executable, '-c', WORKER_CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        assert self.process.stdin
        assert isinstance(self.process.stdout, io.BufferedReader)
        self.input, self.output = self.process.stdin, self.process.stdout
        with contextlib.suppress(AttributeError, OSError):  # not Linux, or the user's limit is reached
            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def send(self, task: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # `receive` reports the reason
            pickle.dump(task, self.input, protocol=5)
            self.input.flush()

    def receive(self) -> Any:
        try:
            succeeded, result = _read_message(self.output)
        except EOFError:
            code = self.process.wait()
            raise ChildProcessError(
                f'a worker process ended unexpectedly, exit code {code}: killed, or out of memory?'
            ) from None
        if not succeeded:
            raise result
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for pipe in (self.input, self.output):
            with contextlib.suppress(BrokenPipeError):  # the worker has ended, so the message does not matter
                pipe.close()


def serve() -> None:
    """The main loop of a worker process, until its parent closes the pipe or ends."""
    source, target, sys.stdout = sys.stdin.buffer, sys.stdout.buffer, sys.stderr

    def run(task: Any) -> None:
        try:
            _write_message(target, (True, work(task)))
        except BaseException as error:  # otherwise the parent would wait forever
            _write_message(target, (False, _portable(error)))

    # Tasks are read while a thread writes results: otherwise both processes could block on full pipes.
    with contextlib.suppress(EOFError, pickle.UnpicklingError), ThreadPoolExecutor(1) as thread:
        work = pickle.load(source)
        while True:
            thread.submit(run, pickle.load(source))


def _portable(error: BaseException) -> Exception:
    """An error for the user unchanged; any other error as one with the traceback as its message."""
    if isinstance(error, (ValueError, OSError)):
        with contextlib.suppress(Exception):
            return pickle.loads(pickle.dumps(error))
    return RuntimeError(''.join(traceback.format_exception(error)))


def _write_message(target: IO[bytes], result: Any) -> None:
    """Writes a pickle, with large arrays in separate buffers."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    target.write(struct.pack(f'<I{len(parts)}Q', len(parts), *(len(part) for part in parts)))
    for part in parts:
        target.write(part)
    target.flush()


def _read_message(source: io.BufferedReader) -> Any:
    (count,) = struct.unpack('<I', _read_exactly(source, 4))
    sizes = struct.unpack(f'<{count}Q', _read_exactly(source, 8 * count))
    head, *buffers = [_read_exactly(source, size) for size in sizes]
    return pickle.loads(head, buffers=buffers)


def _read_exactly(source: io.BufferedReader, size: int) -> memoryview:
    buffer, received = np.empty(size, np.uint8).data, 0
    while received < size:
        count = source.readinto(buffer[received:])
        if not count:
            raise EOFError
        received += count
    return buffer
