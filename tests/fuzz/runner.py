"""Tries inputs in a child process, which is restarted when an input has ended or blocked it."""

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.child import too_much
from tests.fuzz.inputs import Files
from tests.fuzz.targets import Target

ROOT = Path(__file__).parents[2]
START = 120.0  # seconds for the first, valid input, with all imports and compilations
LIMIT = 10.0  # seconds for any other
MEMORY = 2 << 30  # bytes
ENDLESS = 'no end after'
ENVIRONMENT = {
    'PYTHONPATH': str(ROOT),
    'HF_HUB_OFFLINE': '1',
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'VIPLLAVA_COMPILATION_CACHE': 'off',
}


class Failed(Exception):
    """An input has ended or blocked the child."""


class Runner:
    """Tries inputs of one target; `fault` returns what goes wrong with an input."""

    def __init__(self, name: str, target: Target, place: Path, limit: float = LIMIT, memory: int = MEMORY):
        self.name, self.target, self.limit, self.memory = name, target, limit, memory
        self.place = Path(tempfile.mkdtemp(prefix=f'{name}-', dir=place))
        self.valid = self.place / 'valid'
        target.valid(self.valid)
        self.child: subprocess.Popen[str] | None = None

    def fault(self, files: Files) -> str:
        """A description of what goes wrong with an input, or ''.

        An input that takes too long is tried again, with more time if the machine is busy.
        """
        told = self._tried(files, self.limit)
        if not told.startswith(ENDLESS):
            return told
        return self._tried(files, self.limit * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))

    def _tried(self, files: Files, limit: float) -> str:
        try:
            if self.child is None:
                self._start()
            with self.folder(files) as folder:
                told = self._ask(folder, limit)
            if told == too_much(self.memory):  # the child may not return it
                self.stop()
            return told
        except Failed as failed:
            self.stop()
            return str(failed)

    @contextlib.contextmanager
    def folder(self, files: Files) -> Iterator[Path]:
        """A copy of the valid files, in which those of an input replace valid ones."""
        folder = self.place / 'input'
        shutil.copytree(self.valid, folder)
        try:
            for name, data in files.items():
                (folder / name).write_bytes(data)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self) -> None:
        """Starts a child, which imports and compiles everything that the valid files need."""
        read = self.target.read
        target = [read.__module__, read.__name__]
        command = [sys.executable, '-m', 'tests.fuzz.child', *target, str(self.memory)]
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        with self.folder({}) as folder:
            self._ask(folder, START)

    def _ask(self, folder: Path, limit: float) -> str:
        """The child's verdict; Failed if it ends, or takes longer than the limit."""
        child = self.child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f'{folder}\n')
        child.stdin.flush()
        end = time.monotonic() + limit
        while not select.select([child.stdout], [], [], 0.1)[0]:
            if time.monotonic() > end:
                raise Failed(f'{ENDLESS} {limit:.0f} s')
        if line := child.stdout.readline():
            return json.loads(line)
        code = child.wait()
        raise Failed(f'ended by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}')

    def stop(self) -> None:
        """Ends the child and its children."""
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self.child = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.place, ignore_errors=True)


def save(files: Files, name: str, told: str, folder: Path) -> Path:
    """Saves an input and its fault to a folder for `replay`."""
    digest = hashlib.blake2b(
        json.dumps(sorted((n, d.hex()) for n, d in files.items())).encode(), digest_size=6
    )
    kept = folder / name / digest.hexdigest()
    kept.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (kept / file).parent.mkdir(parents=True, exist_ok=True)
        (kept / file).write_bytes(data)
    kept.with_suffix('.txt').write_text(told + '\n')
    return kept


def saved(kept: Path) -> tuple[str, Files]:
    """The target's name and the input in a folder written by `save`."""
    files = {str(path.relative_to(kept)): path.read_bytes() for path in kept.rglob('*') if path.is_file()}
    return kept.resolve().parent.name, files
