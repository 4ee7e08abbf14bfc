"""The checkpoints of a run: a folder per step, written atomically; the last and the best are kept."""

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vipllava_jax import pods
from vipllava_jax.arrays import orbax, writing
from vipllava_jax.messages import CheckpointError, one_line

DELETED = '.deleted-'
LOCK = '.lock'


class Checkpoints:
    """Folders named by their steps; `saver` is an Orbax checkpointer that writes in the background."""

    def __init__(self, folder: Path, keep: int, saver: Any):
        self.folder, self.keep, self._saver = folder, keep, saver
        self.best: int | None = None  # the step to keep, however old
        self._latest = folder  # the folder that is being written, or was written last

    def steps(self) -> list[int]:
        """The steps with complete checkpoints, in order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, step: int, state: Any, best: int | None) -> None:
        """Starts to write a state after the previous one is written; returns once `state` may be changed.

        No older checkpoint is deleted before the new one is complete.
        """
        from orbax.checkpoint import args

        self.wait()
        self.best, self._latest = best, self.path(step)
        with writing(self._latest):
            self._saver.save(self._latest, args=args.PyTreeSave(state))

    def wait(self) -> None:
        """Waits until everything is written, then deletes old checkpoints; raises an error of writing."""
        with writing(self._latest):
            self._saver.wait_until_finished()
        for step in self.steps()[: -self.keep] if pods.is_first() else ():
            if step != self.best:
                deleted = self.folder / f'{DELETED}{step}'  # a partly deleted folder must not look complete
                self.path(step).rename(deleted)
                shutil.rmtree(deleted, ignore_errors=True)

    def restore(self, step: int, shapes: Any) -> Any:
        """Reads a step's state, with the shapes, dtypes and shardings of a tree."""
        from orbax.checkpoint import args, checkpoint_utils

        restore_args = checkpoint_utils.construct_restore_args(shapes)
        try:
            return self._saver.restore(
                self.path(step), args=args.PyTreeRestore(shapes, restore_args=restore_args)
            )
        except Exception as error:  # errors of many types
            raise CheckpointError(
                f'{self.path(step)}: not a state of this run, or damaged; delete it to resume from the one '
                f'before it: {one_line(error)}'
            ) from None


@contextlib.contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[Checkpoints]:
    """Opens the checkpoints in a folder, and deletes what a killed process left incomplete."""
    folder = folder.absolute()
    with pods.together():
        if pods.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_incomplete(folder)
    with orbax() as ocp, _waiting_for_all():
        saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        try:
            yield Checkpoints(folder, keep, saver)
        finally:
            with contextlib.suppress(Exception):  # already raised by `wait`
                saver.close()
            if pods.is_first():
                _remove_incomplete(folder)


def _remove_incomplete(folder: Path) -> None:
    """Removes checkpoints that were partly written or partly deleted."""
    for path in (*folder.glob('*.orbax-checkpoint-tmp*'), *folder.glob(f'{DELETED}*')):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _waiting_for_all() -> Iterator[None]:
    """Makes Orbax wait for all arrays that it writes, even if one of them fails.

    Otherwise it closes their event loop as soon as one has failed, and each of the others prints a traceback
    because the loop is closed.
    """
    from orbax.checkpoint._src.serialization import jax_array_handlers, serialization

    modules: tuple[Any, ...] = (jax_array_handlers, serialization)
    for module in modules:
        module.asyncio = _Asyncio()
    try:
        yield
    finally:
        for module in modules:
            module.asyncio = asyncio


class _Asyncio:
    """asyncio with a `gather` that raises the first error only after all tasks are done."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def gather(*awaitables: Any) -> list[Any]:
        results = await asyncio.gather(*awaitables, return_exceptions=True)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            raise errors[0]
        return results


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Locks a run's folder for this process; the system releases the lock when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            # unlike flock's, this lock is not inherited by worker processes
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f'{folder}: another process is training there: wait for it, or give another output'
            ) from None
        yield
    finally:
        os.close(fd)


def check_run_unlocked(folder: Path) -> None:
    """Raises CheckpointError if another process has locked a run's folder; writes nothing."""
    if (folder / LOCK).exists():
        with lock_run(folder):
            pass
