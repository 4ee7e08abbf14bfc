"""Which answers occupy the rows of an engine's lanes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vipllava_jax.engine.device import Place, Selection
from vipllava_jax.engine.reply import Reply, TokenLogprobs
from vipllava_jax.engine.shapes import Shapes
from vipllava_jax.engine.waiting import Waiting


@dataclass(eq=False)
class Row:
    """An answer that is being generated in a row of a lane."""

    waiting: Waiting  # the question that it answers
    sample: int
    place: Place
    position: int  # of the newest token that has been started
    left: int  # tokens that can still be started
    ends: frozenset[int]  # the ids that end the answer
    prefix: int = 0  # the tokens of the shared prefix, which are not in the row's cache
    new: list[int] = field(default_factory=list)  # ids that the reply has not been given
    reports: list[TokenLogprobs] = field(default_factory=list)  # what is reported of them
    ids: list[int] = field(default_factory=list)  # all that have arrived
    ended: bool = False

    @property
    def reply(self) -> Reply:
        return self.waiting.reply

    @property
    def selection(self) -> Selection:
        return self.waiting.selection

    @property
    def slot(self) -> int:
        """The slot of the newest token, into which the next step writes."""
        return self.position - self.prefix

    @property
    def is_complete(self) -> bool:
        """Whether the answer has as many ids as it may have."""
        return len(self.ids) == self.waiting.left

    def add(self, id: int, report: TokenLogprobs | None) -> None:
        """Adds a new id, which the reply is given with the next `flush`."""
        self.new.append(id)
        self.ids.append(id)
        if report:
            self.reports.append(report)

    def flush(self, now: float) -> None:
        """Gives the new ids to the reply, which finds out whether the answer has ended."""
        if self.new:
            reason = self.reply.push(self.sample, self.new, now, self.reports or None)
            self.ended = bool(reason)
            self.new, self.reports = [], []


class Rows:
    """The rows of all lanes, free or occupied."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.lanes: list[list[Row | None]] = [[None] * rows for rows, _ in shapes.sizes]
        self.dirty: set[Place] = set()  # places whose settings are not neutral

    def __iter__(self) -> Iterator[Row]:
        return (row for lane in self.lanes for row in lane if row is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def short(self) -> list[list[Row | None]]:
        return self.lanes[: len(self.shapes.lanes)]

    def free(self, long: bool = False) -> int:
        """The number of free rows of the short lanes, or of the long one."""
        lanes = self.lanes[len(self.shapes.lanes) :] if long else self.short
        return sum(row is None for lane in lanes for row in lane)

    def first_free(self, long: bool = False) -> Place:
        """The first free row of the short lanes, or of the long one."""
        first = len(self.shapes.lanes) if long else 0
        for lane in range(first, len(self.lanes)):
            for n, row in enumerate(self.lanes[lane]):
                if row is None:
                    return lane, n
        raise AssertionError('no row is free')

    def occupy(self, row: Row) -> None:
        lane, n = row.place
        assert self.lanes[lane][n] is None
        self.lanes[lane][n] = row

    def release(self, row: Row) -> None:
        """Makes the place of a row free; nothing happens if it has left it before."""
        lane, n = row.place
        if self.lanes[lane][n] is row:
            self.lanes[lane][n] = None

    def active(self, group: Sequence[int]) -> list[np.ndarray]:
        """Whether each row of some lanes is occupied, B bool for each lane."""
        return [np.array([row is not None for row in self.lanes[lane]]) for lane in group]

    def in_group(self, group: Sequence[int]) -> list[tuple[int, Row]]:
        """The rows of some lanes with their numbers, counted over all of these lanes."""
        rows = [row for lane in group for row in self.lanes[lane]]
        return [(n, row) for n, row in enumerate(rows) if row is not None]

    def misplaced(self) -> Row | None:
        """A row of the last busy lane whose place would be in an earlier lane if the rows were moved up."""
        counts = [sum(row is not None for row in lane) for lane in self.short]
        last = max((n for n, count in enumerate(counts) if count), default=0)
        if sum(counts) > sum(self.shapes.lanes[:last]):
            return None
        return next((row for row in self.lanes[last] if row is not None), None) if last else None
