"""Runs a script in several real processes, each with fake CPU devices, as on the hosts of a pod."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# what the library of collectives prints, in pieces that would mix with the script's lines, is discarded
BEGIN = "import os, sys; sys.stdout = os.fdopen(os.dup(1), 'w'); os.dup2(os.open(os.devnull, os.O_WRONLY), 1)"
END = 'import os, sys; sys.stdout.flush(); os._exit(0)'  # a normal exit may hang in jax after joining


class Finished(NamedTuple):
    """What a process left behind."""

    code: int
    out: str
    err: str
    seconds: float  # from the start of all processes to its end


class Running:
    """A process whose output goes to files, so that it never waits for a reader."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], place: Path):
        self.place, self.begin, self.seconds = place, time.monotonic(), 0.0
        with (place / 'out').open('wb') as out, (place / 'err').open('wb') as err:
            self.process = subprocess.Popen(
                arguments, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def out(self) -> str:
        return (self.place / 'out').read_text(errors='replace')

    @property
    def err(self) -> str:
        return (self.place / 'err').read_text(errors='replace')

    def finish(self, timeout: float) -> Finished:
        """Waits until the process ends; AssertionError with its output if that takes too long."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'still running after {timeout:.0f} s:\n{self.out}\n{self.err}') from None
        return Finished(code, self.out, self.err, time.monotonic() - self.begin)


def free_port() -> int:
    """A port of this computer that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def environment(devices: int = 2, env: Mapping[str, str] = {}) -> dict[str, str]:
    """The variables of a process with fake CPU devices, and further ones; a value of '' removes one."""
    found = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
        'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}',
        **env,
    }
    return {name: value for name, value in found.items() if value != ''}


@contextmanager
def running_processes(
    script: str | Sequence[str],
    count: int = 2,
    devices: int = 2,
    env: Mapping[str, str] | Sequence[Mapping[str, str]] = {},
) -> Iterator[list[Running]]:
    """Starts processes, and kills those that are left after the block.

    `script` is Python code, or the arguments of a `vipllava` command. Its variables name a coordinator, the
    number of processes and the index of each, which `vipllava_jax.pods.join` reads; `env` adds variables for
    all processes, or for each.
    """
    if isinstance(script, str):
        arguments = ['-c', f'{BEGIN}\n{script}\n{END}']
    else:
        arguments = ['-m', 'vipllava_jax', *map(str, script)]
    shared = {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_port()}',
        'JAX_NUM_PROCESSES': str(count),
    }
    each = [env] * count if isinstance(env, Mapping) else env
    with tempfile.TemporaryDirectory() as folder:
        started = []
        try:
            for index in range(count):
                place = Path(folder) / str(index)
                place.mkdir()
                variables = environment(devices, {**shared, 'JAX_PROCESS_ID': str(index), **each[index]})
                started.append(Running([sys.executable, *arguments], variables, place))
            yield started
        finally:
            for running in started:
                running.process.kill()
                running.process.wait()


def run_processes(
    script: str | Sequence[str],
    count: int = 2,
    devices: int = 2,
    env: Mapping[str, str] | Sequence[Mapping[str, str]] = {},
    timeout: float = 120,
) -> list[Finished]:
    """Runs `running_processes` to their ends -> exit code and output of each, in order of their indices."""
    end = time.monotonic() + timeout
    with running_processes(script, count, devices, env) as started:
        try:
            return [running.finish(max(end - time.monotonic(), 0.1)) for running in started]
        except AssertionError as error:
            for index, running in enumerate(started):
                error.add_note(f'process {index}: {running.process.poll()}\n{running.out}\n{running.err}')
            raise
