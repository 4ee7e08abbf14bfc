"""The shapes of the engine's programs: how many rows and slots there are, and how prompts are padded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vipllava_jax.config import Config
from vipllava_jax.engine.programs import PICTURES
from vipllava_jax.inputs.padding import round_up

FEW_ROWS = (1, 8)  # the rows of the lanes for few answers, which decode faster there than in a large lane
MANY_FEW = 32  # rows of a lane from which on one of FEW_ROWS is useful beside it
TOGETHER = (8, 4, 1)  # the numbers of prompts in one prefill
PREFILL_TOKENS = 5120  # of one prefill, at most, unless a single prompt is longer
LENGTHS = (128, 256, 512, 640, 768, 1024, 1536, 2048)  # to which prompts are padded
AROUND_PICTURE = 48  # tokens of a prompt before its first picture, at most, for the smallest stored prefixes
REST_LENGTHS = (64, 256)  # to which what follows a prefix is padded
REST_TOGETHER = 16  # the number of prompts whose rest is prefilled at once after a prefix that they share


class Shapes(NamedTuple):
    """The numbers of rows and slots of the lanes, and the shapes of prefills.

    A lane is a cache of rows that have as many slots each. Rows of level 0 have the fewest slots, and there
    are lanes of several sizes for them, of which one at a time is in use; each further level has one lane,
    whose rows have more slots.

    A lane can use the cache of another one, divided into more rows of fewer slots, while that one is empty.
    """

    lanes: tuple[int, ...]  # the rows of each lane of level 0
    wide: tuple[tuple[int, int], ...]  # the rows and slots of the lane of each further level
    slots: int  # of level 0
    context: int
    together: tuple[int, ...]  # the numbers of prompts in one prefill, the largest first
    lengths: tuple[int, ...]  # to which prompts are padded
    rest_lengths: tuple[int, ...]  # to which what follows a prefix is padded
    rest_together: int
    prefix_slots: tuple[int, ...]  # the sizes of stored prefixes; the first can be shared by rows
    few: bool = False  # whether there are few programs, and more is computed than needed
    few_in: int = 0  # the level whose cache the largest but one lane of level 0 uses; 0: it has its own
    halved: bool = False  # whether there is a lane of twice as many rows for answers that share a prefix

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """The rows and slots of every level; for level 0 of its largest lane."""
        return (self.lanes[-1], self.slots), *self.wide

    @property
    def rows(self) -> int:
        """The number of answers that are decoded at once."""
        return sum(rows for rows, _ in self.levels)

    @property
    def largest(self) -> int:
        """The largest number of tokens of a prompt and its answer."""
        return self.levels[-1][1]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The rows and slots of every lane: those of level 0, one for each further level, the halved one."""
        halved = [(2 * self.lanes[-1], self.slots // 2)] if self.halved else []
        return [(rows, self.slots) for rows in self.lanes] + [*self.wide] + halved

    @property
    def halved_lane(self) -> int | None:
        """The lane of answers that share a prefix, in the cache of the largest lane of level 0."""
        return len(self.lanes) + len(self.wide) if self.halved else None

    def cache_of(self, lane: int) -> int:
        """The lane whose cache a lane uses: its own, or that of another one."""
        if lane == self.halved_lane:
            return self.lane_of(0)
        return self.lane_of(self.few_in) if self.few_in and lane == self.lane_of(0) - 1 else lane

    def lane_of(self, level: int) -> int:
        """The lane of a level; for level 0 its largest."""
        return len(self.lanes) - 1 + level

    @property
    def prefilled_together(self) -> set[int]:
        """The numbers of rows of everything that is prefilled."""
        return {*self.together, self.rest_together}

    @property
    def pictures(self) -> tuple[int, ...]:
        """The numbers of pictures that are read at once."""
        return (1, PICTURES) if self.few else (1, 4, PICTURES)

    def groups(self) -> Iterator[tuple[int, ...]]:
        """The lanes that one step decodes: each alone, and the largest of each level up to some level."""
        yield from ((lane,) for lane in range(len(self.sizes)))
        for level in range(1, len(self.levels)):
            yield tuple(map(self.lane_of, range(level + 1)))

    def shares(self, group: Sequence[int]) -> bool:
        """Whether the rows of these lanes can share a prefix."""
        return tuple(group) in ((self.lane_of(0),), (self.halved_lane,))

    def level_for(self, tokens: int, new: int) -> int:
        """The level for a prompt and the expected number of new tokens; one that has room for the prompt."""
        for level, (_, slots) in enumerate(self.levels):
            if slots >= tokens + new:
                return level
        return len(self.levels) - 1

    def cache_slots(self, length: int) -> int:
        """The slots of the caches of prompts that are padded to a length, before they are put into rows."""
        return next(slots for slots in self._cache_sizes if slots >= length)

    @property
    def _cache_sizes(self) -> list[int]:
        return sorted({*self.prefix_slots, *(slots for _, slots in self.levels)})

    def sources(self, lane: int) -> set[tuple[int, int]]:
        """The numbers of rows and slots of the caches that are put into rows of a lane."""
        most, one = self.sizes[lane][1], self.together[-1]
        shared = {(self.rest_together, n) for n in self.rest_lengths}
        if lane == self.halved_lane:
            return shared
        prefilled = {(B, self.cache_slots(n)) for B, n in self.prefills()}
        moved = {(1, slots) for _, slots in self.levels}
        joined = {(one, self.slots)}
        shared = shared | {(1, self.slots // 2)} if lane == self.lane_of(0) else set()
        return {(B, slots) for B, slots in prefilled | moved | joined | shared if slots <= most}

    def prefix_slots_for(self, length: int) -> int:
        """The size of a stored prefix."""
        return next(slots for slots in self.prefix_slots if slots >= length)

    def prefills(self) -> Iterator[tuple[int, int]]:
        """The numbers of prompts and tokens of every prefill."""
        for length in self.lengths:
            yield from ((B, length) for B in self.together if self.fits(B, length))

    def fits(self, B: int, length: int) -> bool:
        """Whether so many prompts of a length are prefilled at once."""
        most = PREFILL_TOKENS // 2 if self.few else PREFILL_TOKENS
        return self.together[-1] == B or (length <= self.slots and B * length <= most)

    def length_for(self, tokens: int) -> int:
        """The length to which a prompt is padded."""
        return next(length for length in self.lengths if length >= tokens)


def make_shapes(
    cfg: Config,
    rows: int,
    slots: int,
    wide: Mapping[int, int],
    parts: int = 1,
    few: bool = False,
    divides: bool = False,
) -> Shapes:
    """The shapes for `rows` rows of `slots` slots and, by their slots, numbers of wider rows.

    Rows are divided over `parts` of a mesh. With `few` there are fewer programs to compile, for small models
    on a CPU. With `divides`, lanes can use the caches of others.
    """
    context = cfg.text.context
    slots = min(slots, context)
    wider = {
        min(size, context): count for size, count in sorted(wide.items()) if size > slots < context and count
    }
    divides = divides and parts == 1
    lanes, level = lanes_for_few(wider, slots, rows, few, divides) if parts == 1 else ([], 0)
    largest = max(slots, *wider, 0)
    lengths = {n for n in ((256, 512) if few else LENGTHS) if n < largest} | {slots, *wider}
    smallest = min(round_up(cfg.vision.patches + AROUND_PICTURE, 128), slots)
    rest = REST_LENGTHS[-1:] if few else REST_LENGTHS
    return Shapes(
        lanes=(*lanes, round_up(rows, parts)),
        wide=tuple((round_up(count, parts), size) for size, count in wider.items()),
        slots=slots,
        context=context,
        together=tuple(dict.fromkeys(round_up(B, parts) for B in ((4, 1) if few else TOGETHER))),
        lengths=tuple(sorted(lengths)),
        rest_lengths=tuple(sorted({min(n, slots // 2) for n in rest})),
        rest_together=round_up(4 if few else REST_TOGETHER, parts),
        prefix_slots=(slots,) if few else tuple(dict.fromkeys((smallest, slots))),
        few=few,
        few_in=level,
        halved=divides and slots % 2 == 0,
    )


def lanes_for_few(
    wide: Mapping[int, int], slots: int, rows: int, few: bool, divides: bool
) -> tuple[list[int], int]:
    """The rows of the lanes for fewer than `rows` answers, and the level whose cache the last of them uses.

    The level is the first of `wide`, by their slots, with room for enough rows of `slots` slots; 0 if there
    is none, or if lanes cannot use the caches of others.
    """
    own = [n for n in FEW_ROWS[: 1 if few else None] if n < rows]
    for level, (size, count) in enumerate(wide.items() if divides else (), 1):
        lent = count * (size // slots)
        if size % slots == 0 and FEW_ROWS[-1] <= lent < rows:
            return [n for n in own if n < FEW_ROWS[-1] or lent >= MANY_FEW] + [lent], level
    return own, 0
