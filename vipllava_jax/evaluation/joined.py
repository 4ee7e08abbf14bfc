"""How an evaluation runs in one process, or in processes that have joined and must act alike."""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from vipllava_jax import pods
from vipllava_jax.evaluation.batches import PreparedBatch
from vipllava_jax.evaluation.journal import Journal, open_journal
from vipllava_jax.signals import catch_signals


class Stopped(Exception):
    """A signal ended an evaluation in all processes, after a batch whose answers are in the file."""

    def __init__(self, signal: int):
        super().__init__(f'stopped by signal {signal}')
        self.signal = signal


class Alone:
    """An evaluation in one process: nothing needs to be agreed on."""

    journal = staticmethod(open_journal)
    together = staticmethod(contextlib.nullcontext)
    signals = staticmethod(contextlib.nullcontext)  # which keep their handlers

    def in_all_processes(self, batches: Iterator[PreparedBatch]) -> Iterator[PreparedBatch]:
        return batches


class Joined:
    """An evaluation in joined processes: the first has the file of answers, and all answer each batch."""

    together = staticmethod(pods.together)

    def __init__(self) -> None:
        self.signal_number: Callable[[], int] = lambda: 0

    @contextlib.contextmanager
    def journal(
        self, path: str | os.PathLike[str] | None, settings: dict[str, Any], restart: bool, count: int
    ) -> Iterator[Journal]:
        """The file of answers in process 0; in the others its answers, without the file."""
        with contextlib.ExitStack() as stack:
            with pods.together():
                journal = Journal(None, {})
                if pods.is_first():
                    journal = stack.enter_context(open_journal(path, settings, restart, count))
            records = pods.from_first([*journal.records.values()])
            journal.records = {record['n']: record for record in records}
            yield journal

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Within the block, SIGINT and SIGTERM end the evaluation when a batch is done."""
        with catch_signals() as self.signal_number:
            yield

    def in_all_processes(self, batches: Iterator[PreparedBatch]) -> Iterator[PreparedBatch]:
        """The batches, once all processes have prepared the same one; raises Stopped after a signal."""
        while True:
            with pods.together():
                prepared = next(batches, None)
            numbers = prepared and [*prepared.numbers]
            if len({*pods.gather(zlib.crc32(repr(numbers).encode()))}) > 1:
                raise pods.PodError(
                    'the processes have prepared different questions: give them the same files and options'
                )
            if number := pods.signal_of_any(self.signal_number()):
                raise Stopped(number)
            if prepared is None:
                return
            yield prepared
