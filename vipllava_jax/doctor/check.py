"""The result of a check, and a process that may block, whose messages are awaited with a time limit."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vipllava_jax.messages import printable

LONGEST = 400  # characters of what a check found
OK, FAILED, SKIPPED = 'ok', 'FAIL', '--'
MESSAGE = 'vipllava: '  # before a message on stderr


@dataclass(frozen=True)
class Check:
    """What a check found, and what to do if that is wrong."""

    name: str
    status: str  # OK, FAILED or SKIPPED
    found: str
    advice: str = ''
    details: dict[str, Any] = field(default_factory=dict)  # numbers for --json


def ok(name: str, found: str, **details: Any) -> Check:
    return Check(name, OK, printable(found, LONGEST), details=details)


def failed(name: str, found: str, advice: str) -> Check:
    return Check(name, FAILED, printable(found, LONGEST), printable(advice, LONGEST))


def skipped(name: str, found: str) -> Check:
    return Check(name, SKIPPED, printable(found, LONGEST))


class NoAnswer(Exception):
    """A process ended without an answer, or gave none within the time limit, which the message says."""


class Probe:
    """A process that runs one of the functions of `probes`, and answers with JSON objects, one a line.

    It runs what may block or crash: a driver, a network file system, a connection.
    """

    def __init__(self, name: str, *args: str, environment: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'vipllava_jax.doctor.probes', name, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # so that its own processes end with it
        )
        self._last = ''  # the last message of this package that is not an answer
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line.decode(errors='replace'))
        self._lines.put(None)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer; raises NoAnswer if there is none within the time limit."""
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except queue.Empty:
                raise NoAnswer(f'no answer within {seconds:g} s') from None
            if line is None:
                raise NoAnswer(self._last or _ending(self.process))
            if line.startswith(MESSAGE):
                self._last = line.removeprefix(MESSAGE).strip()
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):  # libraries print other lines
                    return found

    def __enter__(self) -> 'Probe':
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process, without waiting for one that the system cannot end."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)
        self._reader.join(timeout=2)


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that gave no answer."""
    try:
        code = process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return 'the check closed its output'
    if code >= 0:
        return f'the check ended with exit code {code}'
    with contextlib.suppress(ValueError):
        return f'the check was ended by {signal.Signals(-code).name}'
    return f'the check was ended by signal {-code}'


def ask(name: str, *args: str, seconds: float) -> dict[str, Any]:
    """The single answer of a probe; raises NoAnswer."""
    with Probe(name, *args) as probe:
        return probe.answer(seconds)


def output_of(command: Sequence[str], seconds: float) -> str | None:
    """What a program prints; None if there is no such program, it fails, or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            errors='replace',
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def counted(names: Sequence[str]) -> Iterator[str]:
    """Names in order, each once and with its number: '4 x NVIDIA H100'."""
    for name in dict.fromkeys(names):
        count = names.count(name)
        yield f'{count} x {name}' if count > 1 else name
