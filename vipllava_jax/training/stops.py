"""Ends a run after a signal, or a broken row, in all of its processes after the same step."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vipllava_jax import pods
from vipllava_jax.data.batch_maker import TrainingBatch
from vipllava_jax.data.rows import BrokenRow
from vipllava_jax.signals import catch_signals

BROKEN_ROW = 1 << 10  # sent instead of a signal if the next batch cannot be made; larger than any signal


class Stops:
    """The signals that arrived at any process of a run.

    In a run of several processes, each sends with every step the signal that it has received, and the devices
    compute the largest. The processes read it while the devices compute the step, so that no device waits.
    """

    def __init__(self, signal_number: Callable[[], int], mesh: Mesh | None):
        self._local_signal = signal_number
        self._mesh = mesh if pods.process_count() > 1 else None
        self._sent: Array | None = None
        self._signal = 0  # on which the processes have agreed

    def batches(self, batches: Generator[TrainingBatch]) -> Iterator[TrainingBatch]:
        """The batches of a run; BrokenRow or PodError if one of the processes cannot make the next one."""
        if self._mesh is None:
            yield from batches
            return
        with pods.together():
            batch = next(batches, None)
        while batch is not None:
            following = error = None
            try:
                following = next(batches, None)
            except BrokenRow as caught:
                error = caught
            self._send(BROKEN_ROW if error else self._local_signal(), self._mesh)
            yield batch
            if self._received() == BROKEN_ROW:
                with pods.together():
                    if error:
                        raise error
            batch = following

    def _send(self, reason: int, mesh: Mesh) -> None:
        at = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        part = np.full(1, reason, np.int32)
        self._sent = _largest(jax.make_array_from_callback((mesh.size,), at, lambda _: part), mesh)

    def _received(self) -> int:
        assert self._sent is not None
        return int(self._sent)

    def signal(self) -> int:
        """The signal after which the run stops with this step, or 0; the same in all processes."""
        if self._mesh is None:
            return self._local_signal()
        reason = self._received()
        return self._signal or (0 if reason == BROKEN_ROW else reason)

    def signal_now(self) -> int:
        """As `signal`, but at any time: the processes wait for one another."""
        if self._mesh is None:
            return self._local_signal()
        self._signal = self._signal or pods.signal_of_any(self._local_signal())
        return self._signal


@functools.partial(jax.jit, static_argnums=1)
def _largest(x: Array, mesh: Mesh) -> Array:
    return jax.lax.with_sharding_constraint(jnp.max(x), NamedSharding(mesh, PartitionSpec()))


@contextlib.contextmanager
def catch_stops(mesh: Mesh | None) -> Iterator[Stops]:
    """Within the block, SIGINT and SIGTERM are recorded, so that a run can end after a step."""
    with catch_signals() as signal_number:
        yield Stops(signal_number, mesh)
