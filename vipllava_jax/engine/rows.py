"""Which answers occupy the rows of an engine's lanes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vipllava_jax.engine.device import Place, Selection
from vipllava_jax.engine.matching import Matcher
from vipllava_jax.engine.question import QuestionError
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
    matcher: Matcher | None = None  # of the format that the answer has
    allowed: np.ndarray | None = None  # the only ids that the next step may select, W uint32
    is_limited: bool = True  # whether the next token that arrives is one of allowed ids; if it has a matcher

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
        """Whether the answer has as many ids as it may have, or nothing can follow in its format."""
        return len(self.ids) == self.waiting.left or self._is_whole

    @property
    def _is_whole(self) -> bool:
        return self.matcher is not None and self.matcher.is_complete

    def accepts(self, id: int) -> bool:
        """Whether the format of the answer allows a new id, which its matcher then takes."""
        if self.matcher is None:
            return True
        is_allowed = self.matcher.accept(id)
        self.is_limited = self.is_limited and not is_allowed
        return is_allowed

    def roll_back(self) -> None:
        """Returns to the last id that was accepted, after which the next step selects an allowed one.

        Raises QuestionError if it did so already, because settings exclude all ids that are allowed, and if
        the format is too complex.
        """
        assert self.matcher
        self.allowed = self.matcher.allowed()
        if self.is_limited:
            raise QuestionError(
                'the settings exclude every token that the format of the answer allows: change '
                'suppress_tokens, bad_words_ids, logit_bias, forced_eos_token_id or the format',
                'answer_format',
            )
        self.is_limited = True
        self.position = len(self.waiting.ids) + len(self.ids) - 1
        self.left = self.waiting.left - len(self.ids)

    def add(self, id: int, report: TokenLogprobs | None) -> None:
        """Adds a new id, which the reply is given with the next `flush`."""
        self.new.append(id)
        self.ids.append(id)
        if report:
            self.reports.append(report)

    def flush(self, now: float) -> None:
        """Gives the new ids to the reply, which finds out whether the answer has ended."""
        if self.new:
            reason = self.reply.push(self.sample, self.new, now, self.reports or None, self._is_whole)
            self.ended = bool(reason)
            self.new, self.reports = [], []


class Rows:
    """The rows of all lanes. Those of level 0 are in one lane, the smallest one with room for them."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.lane = 0  # the lane of level 0 that is in use
        self.lanes: list[list[Row | None]] = [[None] * rows for rows, _ in shapes.sizes]
        self.dirty: set[Place] = set()  # places whose settings are not neutral

    def __iter__(self) -> Iterator[Row]:
        return (row for lane in self.lanes for row in lane if row is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def at(self, level: int) -> list[Row]:
        """The answers in rows of a level."""
        lane = self.lanes[self.shapes.lane_of(level) if level else self.lane]
        return [row for row in lane if row is not None]

    @property
    def is_halved(self) -> bool:
        """Whether the lane of level 0 in use is the one whose rows all share a prefix."""
        return self.lane == self.shapes.halved_lane and bool(self.at(0))

    def free(self) -> list[int]:
        """How many more answers there is room for at each level, unless they share the prefix of rows."""
        free = [rows - len(self.at(level)) for level, (rows, _) in enumerate(self.shapes.levels)]
        return [0, *free[1:]] if self.is_halved else free

    def free_sharing(self) -> int:
        """How many more answers there is room for that share the prefix of rows."""
        return self.lanes[self.lane].count(None) if self.is_halved else self.free()[0]

    @property
    def top(self) -> int:
        """The highest level that has answers; 0 if there are none."""
        return max((level for level in range(len(self.shapes.levels)) if self.at(level)), default=0)

    def lane_for(self, count: int) -> int:
        """The smallest lane of level 0 for so many answers; the largest one if other levels have answers."""
        largest = self.shapes.lane_of(0)
        fitting = (lane for lane, rows in enumerate(self.shapes.lanes) if rows >= count)
        return largest if self.top else next(fitting, largest)

    def first_free(self, lane: int) -> Place:
        """The first free row of a lane."""
        return lane, self.lanes[lane].index(None)

    def occupy(self, row: Row) -> None:
        """Puts an answer into its place, which is free, as are all lanes that use the same cache."""
        lane, n = row.place
        cache = self.shapes.cache_of(lane)
        lanes = (rows for i, rows in enumerate(self.lanes) if i != lane and self.shapes.cache_of(i) == cache)
        assert self.lanes[lane][n] is None
        assert not any(any(rows) for rows in lanes)
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
