"""The rows of a batch that have no line in the output yet."""

import time
from collections.abc import Iterator

from vipllava_jax.batch_files.ids import IdSet
from vipllava_jax.batch_files.names import Names
from vipllava_jax.batch_files.output import Output
from vipllava_jax.batch_files.questions import QuestionMaker, RowQuestion
from vipllava_jax.batch_files.sources import Source
from vipllava_jax.row_shards import Shard

SKIPPING = 0.2  # seconds after which rows that have a line are left for a moment, to look at other things


class PendingRows(Iterator[RowQuestion | None]):
    """The questions of a source, or of a part of it, whose ids are not done; None where the next one is late.

    `read` counts the rows of the part that have been read, and `end` says how much of the source that is.
    """

    def __init__(self, source: Source, make: QuestionMaker, shard: Shard | None, done: IdSet):
        self.make, self.shard, self.done = make, shard, done
        self.rows, self.names = source.rows(), Names()
        self.read, self.end = 0, 0

    def __next__(self) -> RowQuestion | None:
        begin = time.monotonic()
        for row in self.rows:
            if row is None:
                return None
            named, self.end = self.names.of_text(row), row.end
            if not self.shard or self.shard.holds(named.id):
                self.read += 1
                if named.id not in self.done:
                    return self.make(named)
            if time.monotonic() - begin > SKIPPING:
                return None
        raise StopIteration


def first_question(pending: PendingRows, output: Output) -> RowQuestion | None:
    """The first question, before which the errors of rows are written; None if there is no question."""
    for asked in pending:
        if asked and asked.questions:
            return asked
        if asked:
            assert asked.error is not None
            output.write([asked.lines.error(asked.error)])
    return None
