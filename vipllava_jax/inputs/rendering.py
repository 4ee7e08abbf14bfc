"""Renders chat templates in a child process, which is killed if one takes too much time or memory."""

import atexit
import contextlib
import importlib.util
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_CHARACTERS = 1_000_000  # characters of a template, and of its output
CPU_SECONDS = 2  # of processor time per rendering; published templates take milliseconds
WALL_SECONDS = 8.0  # seconds of wall time per rendering, for a busy machine
MAX_MEMORY = 256 << 20  # bytes of the child's address space; Python and jinja2 need 50 MB
START_SECONDS = 60.0  # seconds for the child to start
MAX_FAILURES = 3  # a template that has ended the child this often is refused; once is enough for time
MAX_MESSAGE = 16 << 20  # bytes of a request or a reply: MAX_CHARACTERS, each written as \\ud83d\\ude00
HEADER = struct.Struct('>Q')
KEPT_VARIABLES = ('LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH', 'DYLD_FALLBACK_LIBRARY_PATH', 'TZ', 'TZDIR')


class RenderingError(Exception):
    """A template that could not be rendered."""


class LimitExceeded(RenderingError):
    """A template that exceeded a limit, so that the child was killed."""


class TimeExceeded(LimitExceeded):
    """A template that exceeded a limit on time, as it would for every row of data."""


class Renderer:
    """One child process, started when needed and restarted after it was killed; threads take turns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.failures: Counter[str] = Counter()  # the number of failures of each template, by its source

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The output of a template with these variables; RenderingError if it fails."""
        if len(source) > MAX_CHARACTERS:
            raise RenderingError(f'it is longer than {MAX_CHARACTERS} characters')
        request = {
            'source': source,
            'variables': variables,
            'max_characters': MAX_CHARACTERS,
            'seconds': CPU_SECONDS,
        }
        body = json.dumps(request).encode()
        if len(body) > MAX_MESSAGE:
            raise RenderingError(f'the conversation is longer than {MAX_CHARACTERS} characters')
        with self.lock:
            if self.failures[source] >= MAX_FAILURES:
                raise RenderingError('it took too much time or memory before')
            try:
                reply = self._request(body)
                if reply.get('memory'):
                    raise LimitExceeded(f'it needs more than {MAX_MEMORY >> 20} MB of memory')
            except LimitExceeded as error:
                self.failures[source] += MAX_FAILURES if isinstance(error, TimeExceeded) else 1
                self.stop()  # also after a MemoryError, as the child's memory may be fragmented
                raise
            except BaseException:  # also Ctrl-C: the next request must not get the reply to this one
                self.stop()
                raise
        if 'text' not in reply:
            raise RenderingError(str(reply.get('error')))
        return str(reply['text'])

    def stop(self) -> None:
        """Kills the child, if there is one."""
        process, self.process = self.process, None
        if process:
            process.kill()
            _close(process)
            process.wait()

    def drop_child(self) -> None:
        """After a fork, in the new process: drops the child, which belongs to the parent process."""
        process, self.process, self.lock = self.process, None, threading.Lock()
        if process:
            _close(process)
            process.returncode = 0  # so that Popen does not wait for a process that is not its child

    def _request(self, body: bytes) -> dict[str, Any]:
        """The reply to a request, which is sent once more, to a new child, if the first child has ended."""
        for is_retry in (False, True):
            process = self._running_child()
            assert process.stdin
            try:
                process.stdin.write(HEADER.pack(len(body)) + body)
                process.stdin.flush()
                return _receive(process, WALL_SECONDS)
            except TimeoutError:
                raise TimeExceeded(f'it takes longer than {WALL_SECONDS:.0f} seconds') from None
            except (EOFError, OSError):
                code = _exit_code(process)
                self.stop()
            if code == -signal.SIGXCPU:
                raise TimeExceeded(f'it uses more than {CPU_SECONDS} seconds of processor time')
            if is_retry:
                raise LimitExceeded(f'it crashes the process that renders it (exit code {code})')
        raise AssertionError

    def _running_child(self) -> 'subprocess.Popen[bytes]':
        if self.process and self.process.poll() is not None:
            self.stop()
        if self.process is None:
            self.process = _start()
            try:
                reason = _receive(self.process, START_SECONDS).get('error')
            except (EOFError, TimeoutError):
                reason = f'it did not answer, with exit code {self.process.poll()}'
            if reason:
                raise RenderingError(f'the process that renders it does not start: {reason}')
        return self.process


def _start() -> 'subprocess.Popen[bytes]':
    # -I and -S: ignore the user's settings, and keep this package's folder off the module search path
    worker = Path(__file__).absolute().with_name('template_worker.py')
    command = [
        sys.executable,
        '-I',
        '-S',
        str(worker),
        str(MAX_MEMORY),
        *_import_folders('jinja2', 'markupsafe'),
    ]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd='/',
            env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
            start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
        )
    except OSError as error:
        raise RenderingError(f'the process that renders it does not start: {error.strerror}') from None


def _import_folders(*packages: str) -> list[str]:
    """The folders that contain the given packages, found without importing the packages."""
    found = [importlib.util.find_spec(name) for name in packages]
    return [str(Path(spec.origin).absolute().parent.parent) for spec in found if spec and spec.origin]


def _receive(process: 'subprocess.Popen[bytes]', seconds: float) -> dict[str, Any]:
    """The next reply; TimeoutError, or EOFError if the child has ended."""
    assert process.stdout
    fd, deadline = process.stdout.fileno(), time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)

        def read(size: int) -> bytes:
            pieces = []
            while size:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TimeoutError
                piece = os.read(fd, min(size, 1 << 16))
                if not piece:
                    raise EOFError
                pieces.append(piece)
                size -= len(piece)
            return b''.join(pieces)

        (size,) = HEADER.unpack(read(HEADER.size))
        if size > MAX_MESSAGE:
            raise EOFError
        reply = json.loads(read(size))
    return reply if isinstance(reply, dict) else {}


def _exit_code(process: 'subprocess.Popen[bytes]') -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(1)
    return None


def _close(process: 'subprocess.Popen[bytes]') -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()


RENDERER = Renderer()  # the renderer of this process
atexit.register(RENDERER.stop)
os.register_at_fork(after_in_child=RENDERER.drop_child)
