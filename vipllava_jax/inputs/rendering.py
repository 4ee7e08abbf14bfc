"""Renders chat templates in a child process, which is ended if one takes too long or too much memory."""

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

LONGEST = 1_000_000  # characters of a template, and of what it writes
SECONDS = 2  # of computing that one rendering may take, published templates need a thousandth
PATIENCE = 8.0  # seconds on the clock, for a machine that is busy with other things
MEMORY = 256 << 20  # bytes of the child's address space, of which Python and jinja2 need 50 MB
START = 60.0  # seconds until the child is there
STRIKES = 3  # times that a template may end the child before it is refused without a trial: once for time
MOST = 16 << 20  # bytes of a request or a reply: LONGEST characters, each written as \\ud83d\\ude00
HEADER = struct.Struct('>Q')
KEPT = ('LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH', 'DYLD_FALLBACK_LIBRARY_PATH', 'TZ', 'TZDIR')


class RenderingError(Exception):
    """Why a template could not be rendered."""


class TooMuch(RenderingError):
    """It ended the child, or would have."""


class TooLong(TooMuch):
    """It took too much time, which rows of data would cost again and again."""


class Renderer:
    """One child process, started when it is first needed and again after it was ended; threads take turns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.strikes: Counter[str] = Counter()  # of templates, by their source

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """What a template writes with these variables; RenderingError says why it cannot."""
        if len(source) > LONGEST:
            raise RenderingError(f'it is longer than {LONGEST} characters')
        request = {'source': source, 'variables': variables, 'longest': LONGEST, 'seconds': SECONDS}
        body = json.dumps(request).encode()
        if len(body) > MOST:
            raise RenderingError(f'the conversation is longer than {LONGEST} characters')
        with self.lock:
            if self.strikes[source] >= STRIKES:
                raise RenderingError('it took too much time or memory before')
            try:
                reply = self._ask(body)
                if reply.get('memory'):
                    raise TooMuch(f'it needs more than {MEMORY >> 20} MB of memory')
            except TooMuch as error:
                self.strikes[source] += STRIKES if isinstance(error, TooLong) else 1
                self.end()  # also after a MemoryError: what memory is left may be in pieces
                raise
            except BaseException:  # also Ctrl-C: the next request must not get the reply to this one
                self.end()
                raise
        if 'text' not in reply:
            raise RenderingError(str(reply.get('error')))
        return str(reply['text'])

    def end(self) -> None:
        """Ends the child, if there is one."""
        process, self.process = self.process, None
        if process:
            process.kill()
            _close(process)
            process.wait()

    def forget(self) -> None:
        """In a fork of this process: leaves the child to the process that started it."""
        process, self.process, self.lock = self.process, None, threading.Lock()
        if process:
            _close(process)
            process.returncode = 0  # or it would be waited for, in vain, as this object goes

    def _ask(self, body: bytes) -> dict[str, Any]:
        """The reply to a request; it is sent to a second child if the first was ended, by whomever."""
        for fresh in (False, True):
            process = self._started()
            assert process.stdin
            try:
                process.stdin.write(HEADER.pack(len(body)) + body)
                process.stdin.flush()
                return _receive(process, PATIENCE)
            except TimeoutError:
                raise TooLong(f'it takes longer than {PATIENCE:.0f} seconds') from None
            except (EOFError, OSError):
                code = _exit_code(process)
                self.end()
            if code == -signal.SIGXCPU:
                raise TooLong(f'it computes for more than {SECONDS} seconds')
            if fresh:
                raise TooMuch(f'it ends the process that renders it (exit code {code})')
        raise AssertionError

    def _started(self) -> 'subprocess.Popen[bytes]':
        if self.process and self.process.poll() is not None:
            self.end()
        if self.process is None:
            self.process = _start()
            try:
                why = _receive(self.process, START).get('error')
            except (EOFError, TimeoutError):
                why = f'it did not answer, with exit code {self.process.poll()}'
            if why:
                raise RenderingError(f'the process that renders it does not start: {why}')
        return self.process


def _start() -> 'subprocess.Popen[bytes]':
    # -I and -S: neither the user's settings nor this package's folder, whose modules' names are not unique
    worker = Path(__file__).absolute().with_name('template_worker.py')
    command = [sys.executable, '-I', '-S', str(worker), str(MEMORY), *_homes('jinja2', 'markupsafe')]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd='/',
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )
    except OSError as error:
        raise RenderingError(f'the process that renders it does not start: {error.strerror}') from None


def _homes(*packages: str) -> list[str]:
    """The folders from which packages are imported, without importing them."""
    found = [importlib.util.find_spec(name) for name in packages]
    return [str(Path(spec.origin).absolute().parent.parent) for spec in found if spec and spec.origin]


def _receive(process: 'subprocess.Popen[bytes]', patience: float) -> dict[str, Any]:
    """The next reply; TimeoutError, or EOFError if the child has ended."""
    assert process.stdout
    fd, deadline = process.stdout.fileno(), time.monotonic() + patience
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
        if size > MOST:
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


RENDERER = Renderer()  # of this process
atexit.register(RENDERER.end)
os.register_at_fork(after_in_child=RENDERER.forget)
