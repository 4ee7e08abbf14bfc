"""A worker process as its parent sees it: given one question at a time, and replaced when it fails."""

import contextlib
import fcntl
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time

from vipllava_jax.engine.picture_worker import PictureTask, Prepared, WorkerSettings, read_answer

# As in data.workers: multiprocessing would run the script of the caller again.
WORKER_CODE = (
    'import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); '
    'from vipllava_jax.engine.picture_worker import serve; serve()'
)
PIPE_BYTES = 1 << 20
ONE_THREAD = dict.fromkeys(('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
END_SECONDS = 1.0  # for a process to end; one that waits for a file system may not even after SIGKILL
CLOSED = 'the pool of pictures is closed'


class WorkerLost(RuntimeError):
    """A worker process has not answered; the message says why."""


class PictureProcess:
    """A place for one worker process at a time; `start` and `prepare` are called by one thread."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # held while the process is started or dropped
        self._closed = False

    def start(self) -> 'subprocess.Popen[bytes]':
        """The process, which is started if none is running; OSError if that fails."""
        if self._process and self._process.poll() is not None:  # it ended while it waited
            self._drop(self._process)
        with self._lock:
            if self._closed:
                raise WorkerLost(CLOSED)
            if self._process is None:
                self._process = _start()
                start = pickle.dumps(sys.path) + pickle.dumps(self.settings)
                with contextlib.suppress(BrokenPipeError):
                    _Pipes(self._process, END_SECONDS).write(start)
            return self._process

    def prepare(self, task: PictureTask, seconds: float) -> Prepared | str:
        """The pictures of a question, or why they cannot be prepared.

        Raises WorkerLost if the process ends before it has answered, or takes longer; the next call starts
        another one.
        """
        data = pickle.dumps(task, protocol=5)
        process = self.start()
        pipes = _Pipes(process, seconds)
        try:
            with contextlib.suppress(BrokenPipeError):  # reading the answer shows why
                pipes.write(data)
            return read_answer(pipes, len(task.sources), self.settings.images.side)
        except TimeoutError:
            self._drop(process)
            reason = f'it takes longer than {seconds:.0f} seconds to prepare: make it smaller first'
        except (EOFError, OSError, ValueError):
            reason = _describe(self._drop(process, patience=END_SECONDS))
        raise WorkerLost(CLOSED if self._closed else reason)

    def close(self) -> None:
        """Ends the process; no other one is started. A thread in `prepare` gets WorkerLost."""
        self._closed = True
        with self._lock:
            if self._process:
                self._process.kill()

    def end(self) -> None:
        """Ends the process, in the thread that calls `prepare`."""
        if self._process:
            self._drop(self._process)

    def _drop(self, process: 'subprocess.Popen[bytes]', patience: float = 0.0) -> int | None:
        """Ends the process -> its exit code, that of its own end if it ends within `patience` seconds."""
        with self._lock:
            self._process = None
        for pipe in (process.stdin, process.stdout):
            assert pipe
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if patience:
                return process.wait(patience)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(END_SECONDS)
        return None


class _Pipes:
    """Writes to a process and reads from it, until a deadline: TimeoutError."""

    def __init__(self, process: 'subprocess.Popen[bytes]', seconds: float) -> None:
        assert process.stdin
        assert process.stdout
        self.input, self.output = process.stdin.fileno(), process.stdout.fileno()
        self.deadline = time.monotonic() + seconds

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self.input, select.POLLOUT)
            view = view[os.write(self.input, view) :]

    def readinto(self, buffer: memoryview) -> int:
        """Reads what there is, at most the size of the buffer -> the number of bytes; 0 at the end."""
        self._wait(self.output, select.POLLIN)
        return os.readv(self.output, [buffer])

    def _wait(self, pipe: int, event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(self.deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError


def _start() -> 'subprocess.Popen[bytes]':
    process = subprocess.Popen(
        [sys.executable, '-c', WORKER_CODE],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # where the libraries that read pictures write what a file says
        env={**os.environ, **ONE_THREAD},
        process_group=0,  # so that Ctrl-C in the terminal does not reach it
    )
    for pipe in (process.stdin, process.stdout):
        assert pipe
        os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(AttributeError, OSError):  # not Linux, or the user's limit is reached
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


def _describe(code: int | None) -> str:
    """Why there is no answer of a process with this exit code."""
    known = code is not None and -code in {*signal.Signals}
    how = signal.Signals(-code).name if code is not None and known else f'exit code {code}'
    return f'the process that prepared it ended unexpectedly ({how}): damaged, or out of memory?'
