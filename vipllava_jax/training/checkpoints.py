"""The states of a run on the disk, a folder a step, whole or not there; the last and the best are kept."""

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vipllava_jax.arrays import orbax, writing
from vipllava_jax.messages import CheckpointError, one_line

DELETED = '.deleted-'
LOCK = '.lock'


class Checkpoints:
    """Folders named by their steps; `saver` is Orbax's and writes them while the run goes on."""

    def __init__(self, folder: Path, keep: int, saver: Any):
        self.folder, self.keep, self._saver = folder, keep, saver
        self.best: int | None = None  # the one to be kept, however old
        self._begun = folder  # the one that is written, or was last

    def steps(self) -> list[int]:
        """Those whose states are whole, in order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def place(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, step: int, state: Any, best: int | None) -> None:
        """Begins to write a state, once the one before is written; returns when the given one may change.

        Before it is whole it takes no other's place, neither among those that are kept nor as the best.
        """
        from orbax.checkpoint import args

        self.wait()
        self.best, self._begun = best, self.place(step)
        with writing(self._begun):
            self._saver.save(self._begun, args=args.PyTreeSave(state))

    def wait(self) -> None:
        """Returns when all is written and only what is kept is there; raises what went wrong."""
        with writing(self._begun):
            self._saver.wait_until_finished()
        for step in self.steps()[: -self.keep]:
            if step != self.best:
                doomed = self.folder / f'{DELETED}{step}'  # half a folder must not look like a whole one
                self.place(step).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def restore(self, step: int, shapes: Any) -> Any:
        """A step's state, as a tree of shapes, types and places says."""
        from orbax.checkpoint import args, checkpoint_utils

        how = checkpoint_utils.construct_restore_args(shapes)
        try:
            return self._saver.restore(self.place(step), args=args.PyTreeRestore(shapes, restore_args=how))
        except Exception as error:  # of many types, whatever is the matter
            raise CheckpointError(
                f'{self.place(step)}: not a state of this run, or damaged; delete it to go on from the one '
                f'before: {one_line(error)}'
            ) from None


@contextlib.contextmanager
def opened(folder: Path, keep: int) -> Iterator[Checkpoints]:
    """The checkpoints in a folder, without what a killed process left half written or half deleted."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    with orbax() as ocp, _patient():
        saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        try:
            yield Checkpoints(folder, keep, saver)
        finally:
            with contextlib.suppress(Exception):  # told already by whoever waited
                saver.close()
            _sweep(folder)


def _sweep(folder: Path) -> None:
    """Removes states that are half written or half deleted, of which none is under way."""
    for half in (*folder.glob('*.orbax-checkpoint-tmp*'), *folder.glob(f'{DELETED}*')):
        shutil.rmtree(half, ignore_errors=True)


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Lets Orbax wait for all arrays that it writes, even if one of them fails.

    It closes their event loop as soon as one has failed. Each of the others then complains on stderr, in a
    traceback of its own, that the loop is closed.
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
    """asyncio with a `gather` that raises the first error only when all are done."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def gather(*awaitables: Any) -> list[Any]:
        results = await asyncio.gather(*awaitables, return_exceptions=True)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            raise errors[0]
        return results


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds a run's folder for this process; the lock goes with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            # unlike flock's, this lock is not inherited by worker processes
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f'{folder}: another process trains there: wait for it, or give another output'
            ) from None
        yield
    finally:
        os.close(fd)


def check_alone(folder: Path) -> None:
    """Raises as `alone` does if another process holds a run's folder; writes nothing there."""
    if (folder / LOCK).exists():
        with alone(folder):
            pass
