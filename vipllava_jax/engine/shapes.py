"""The shapes of the engine's programs: how many rows and slots there are, and how prompts are padded."""

from collections.abc import Iterator
from typing import NamedTuple

from vipllava_jax.config import Config
from vipllava_jax.engine.programs import PICTURES
from vipllava_jax.inputs.padding import round_up

FEW_ROWS = (1, 8)  # the rows of the lanes for few answers, which decode faster there than in a large lane
LONG_ROWS = 4  # by default
TOGETHER = (8, 4, 1)  # the numbers of prompts in one prefill
PREFILL_TOKENS = 5120  # of one prefill, at most, unless a single prompt is longer
LENGTHS = (128, 256, 512, 640, 768, 1024, 1536, 2048)  # to which prompts are padded
AROUND_PICTURE = 48  # tokens of a prompt before its first picture, at most, for the smallest stored prefixes
REST_LENGTHS = (64, 256)  # to which what follows a prefix is padded
REST_TOGETHER = 16  # the number of prompts whose rest is prefilled at once after a prefix that they share


class Shapes(NamedTuple):
    """The numbers of rows and slots of the lanes, and the shapes of prefills."""

    lanes: tuple[int, ...]  # the rows of each short lane, of which one at a time is in use
    long_rows: int  # the rows of the lane of the full context; 0: there is none
    slots: int  # of the short lanes
    context: int
    together: tuple[int, ...]  # the numbers of prompts in one prefill, the largest first
    lengths: tuple[int, ...]  # to which prompts are padded
    rest_lengths: tuple[int, ...]  # to which what follows a prefix is padded
    rest_together: int
    prefix_slots: tuple[int, ...]  # the sizes of stored prefixes; the first can be shared by rows
    few: bool = False  # whether there are few programs, and more is computed than needed

    @property
    def rows(self) -> int:
        """The number of short answers that are decoded at once."""
        return self.lanes[-1]

    @property
    def long_lane(self) -> int:
        """The number of the long lane."""
        return len(self.lanes)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The rows and slots of every lane; the last one is the long lane, if there is one."""
        long = [(self.long_rows, self.context)] if self.long_rows else []
        return [(rows, self.slots) for rows in self.lanes] + long

    @property
    def prefilled_together(self) -> set[int]:
        """The numbers of rows of everything that is prefilled."""
        return {*self.together, self.rest_together}

    @property
    def pictures(self) -> tuple[int, ...]:
        """The numbers of pictures that are read at once."""
        return (1, PICTURES) if self.few else (1, 4, PICTURES)

    def groups(self) -> Iterator[tuple[int, ...]]:
        """The lanes that one step decodes: each alone, and the largest short lane with the long one."""
        yield from ((lane,) for lane in range(len(self.sizes)))
        if self.long_rows:
            yield self.long_lane - 1, self.long_lane

    def is_long(self, tokens: int) -> bool:
        """Whether a prompt needs a row of the long lane; a short one has a slot for a new token, too."""
        return bool(self.long_rows) and tokens >= self.slots

    def cache_slots(self, length: int) -> int:
        """The slots of the caches of prompts that are padded to a length, before they are put into rows."""
        sizes = (*self.prefix_slots, self.slots, self.context)
        return next(slots for slots in sizes if slots >= length)

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
    cfg: Config, rows: int, slots: int, long_rows: int | None, parts: int = 1, few: bool = False
) -> Shapes:
    """The shapes for a number of rows, which are divided over `parts` of a mesh.

    With `few` there are fewer programs to compile, for small models on a CPU.
    """
    context = cfg.text.context
    slots = min(slots, context)
    long_rows = 0 if slots == context else LONG_ROWS if long_rows is None else long_rows
    lanes = [n for n in FEW_ROWS[: 1 if few else None] if n < rows and parts == 1] + [round_up(rows, parts)]
    lengths = {n for n in ((256, 512) if few else LENGTHS) if n < context} | {slots, context}
    if slots < context and not long_rows:
        lengths -= {n for n in lengths if n > slots}
    smallest = min(round_up(cfg.vision.patches + AROUND_PICTURE, 128), slots)
    return Shapes(
        lanes=tuple(lanes),
        long_rows=round_up(long_rows, parts) if long_rows else 0,
        slots=slots,
        context=context,
        together=tuple(dict.fromkeys(round_up(B, parts) for B in ((4, 1) if few else TOGETHER))),
        lengths=tuple(sorted(lengths)),
        rest_lengths=tuple(
            sorted({min(n, slots // 2) for n in (REST_LENGTHS[-1:] if few else REST_LENGTHS)})
        ),
        rest_together=round_up(4 if few else REST_TOGETHER, parts),
        prefix_slots=(slots,) if few else tuple(dict.fromkeys((smallest, slots))),
        few=few,
    )
