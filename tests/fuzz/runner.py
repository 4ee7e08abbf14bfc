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

from tests.fuzz.child import memory_fault
from tests.fuzz.inputs import Files
from tests.fuzz.targets import Target

ROOT = Path(__file__).parents[2]
FIRST_SECONDS = 120.0  # for the first, valid input, with all imports and compilations
SECONDS = 10.0  # for any other input
MEMORY = 2 << 30  # bytes
TIMEOUT = 'no end after'
ENVIRONMENT = {
    'PYTHONPATH': str(ROOT),
    'HF_HUB_OFFLINE': '1',
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'VIPLLAVA_COMPILATION_CACHE': 'off',
}


class ChildEnded(Exception):
    """An input has ended or blocked the child."""


class Runner:
    """Tries inputs of one target; `fault` returns what goes wrong with an input."""

    def __init__(self, name: str, target: Target, place: Path, limit: float = SECONDS, memory: int = MEMORY):
        self.name, self.target, self.limit, self.memory = name, target, limit, memory
        self.place = Path(tempfile.mkdtemp(prefix=f'{name}-', dir=place))
        self.valid = self.place / 'valid'
        target.valid(self.valid)
        self.child: subprocess.Popen[str] | None = None

    def fault(self, files: Files) -> str:
        """A description of what goes wrong with an input, or ''.

        An input that takes too long is tried again, with more time if the machine is busy.
        """
        description = self._try(files, self.limit)
        if not description.startswith(TIMEOUT):
            return description
        return self._try(files, self.limit * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))

    def _try(self, files: Files, limit: float) -> str:
        try:
            if self.child is None:
                self._start()
            with self.folder(files) as folder:
                description = self._send(folder, limit)
            if description == memory_fault(self.memory):  # the child may not return the memory
                self.stop()
            return description
        except ChildEnded as error:
            self.stop()
            return str(error)

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
            self._send(folder, FIRST_SECONDS)

    def _send(self, folder: Path, limit: float) -> str:
        """The child's description of the fault, or ''; ChildEnded if it ends or exceeds the limit."""
        child = self.child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f'{folder}\n')
        child.stdin.flush()
        end = time.monotonic() + limit
        while not select.select([child.stdout], [], [], 0.1)[0]:
            if time.monotonic() > end:
                raise ChildEnded(f'{TIMEOUT} {limit:.0f} s')
        if line := child.stdout.readline():
            return json.loads(line)
        code = child.wait()
        raise ChildEnded(
            f'ended by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'
        )

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


def save(files: Files, name: str, description: str, folder: Path) -> Path:
    """Saves an input and the description of its fault to a folder for `replay`; returns that folder."""
    digest = hashlib.blake2b(
        json.dumps(sorted((n, d.hex()) for n, d in files.items())).encode(), digest_size=6
    )
    target = folder / name / digest.hexdigest()
    target.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (target / file).write_bytes(data)
    target.with_suffix('.txt').write_text(description + '\n')
    return target


def load_saved(folder: Path) -> tuple[str, Files]:
    """The target's name and the input in a folder written by `save`."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    return folder.resolve().parent.name, files
