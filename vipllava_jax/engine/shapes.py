"""The shapes of the engine's programs: how many rows and slots there are, and how prompts are padded."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vipllava_jax.config import Config
from vipllava_jax.engine.programs import PICTURES
from vipllava_jax.inputs.padding import round_up

FEWEST_ROWS = (1, 8, 32)  # the first lanes end at these numbers of rows, so that few rows decode alone
PREFILL_TOKENS = 5120  # of one prefill, at most, unless a single prompt is longer
TOGETHER = (8, 4, 1)  # the numbers of prompts in one prefill
LENGTHS = (128, 256, 512, 640, 768, 1024, 1280, 1536, 2048, 3072)  # to which prompts are padded
LONG_ROWS = 4  # by default
AFTER_PREFIX = (64, 256)  # to which what follows a prefix is padded


class Shapes(NamedTuple):
    """The numbers of rows and slots of the lanes, and the shapes of prefills."""

    lanes: tuple[int, ...]  # the rows of each short lane
    long_rows: int  # the rows of the lane of the full context; 0: there is none
    slots: int  # of the short lanes
    context: int
    together: tuple[int, ...]  # the numbers of prompts in one prefill, the largest first
    lengths: tuple[int, ...]  # to which prompts are padded
    rest_lengths: tuple[int, ...]  # to which what follows a prefix is padded
    prefix_slots: tuple[int, ...]  # the sizes of stored prefixes; the first can be shared by rows
    few: bool = False  # whether there are few programs, and more is computed than needed

    @property
    def rows(self) -> int:
        """The rows of the short lanes."""
        return sum(self.lanes)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The rows and slots of every lane; the last one is the long lane, if there is one."""
        long = [(self.long_rows, self.context)] if self.long_rows else []
        return [(rows, self.slots) for rows in self.lanes] + long

    @property
    def pictures(self) -> tuple[int, ...]:
        """The numbers of pictures that are read at once."""
        return (1, PICTURES) if self.few else (1, 4, PICTURES)

    def is_long(self, tokens: int) -> bool:
        """Whether a prompt needs a row of the long lane; a short one has a slot for a new token, too."""
        return bool(self.long_rows) and tokens >= self.slots

    def slots_for(self, length: int) -> int:
        """The slots of the caches of prompts that are padded to a length."""
        return self.slots if length <= self.slots else self.context

    def prefix_slots_for(self, length: int) -> int:
        """The size of a stored prefix."""
        return next(slots for slots in self.prefix_slots if slots >= length)

    def groups(self) -> Iterator[tuple[int, ...]]:
        """The lanes that are decoded together: the first ones, the long one, and all."""
        short, long = tuple(range(len(self.lanes))), (len(self.lanes),) if self.long_rows else ()
        yield from (short[: n + 1] for n in range(len(short)))
        if long:
            yield long
            yield short + long

    def group_for(self, busy: Sequence[bool]) -> tuple[int, ...]:
        """The fewest lanes that hold all lanes that are busy."""
        needed = {lane for lane, is_busy in enumerate(busy) if is_busy}
        return next(group for group in self.groups() if needed <= {*group})

    def group_with_all_short(self, group: Sequence[int]) -> tuple[int, ...]:
        """The lanes of a group and all short ones."""
        return tuple(sorted({*range(len(self.lanes)), *group}))

    def prefills(self) -> Iterator[tuple[int, int]]:
        """The numbers of prompts and tokens of every prefill."""
        for length in self.lengths:
            yield from ((B, length) for B in self.together if self.together[-1] == B or self.fits(B, length))

    def fits(self, B: int, length: int) -> bool:
        """Whether so many prompts of a length are prefilled at once."""
        return length <= self.slots and B * length <= (PREFILL_TOKENS // 2 if self.few else PREFILL_TOKENS)

    def length_for(self, tokens: int) -> int:
        """The length to which a prompt is padded."""
        return next(length for length in self.lengths if length >= tokens)


def make_shapes(
    cfg: Config, rows: int, slots: int, long_rows: int | None, parts: int = 1, few: bool = False
) -> Shapes:
    """The shapes for a number of rows, which are divided over `parts` of a mesh.

    With `few` there are fewer shapes to compile and more padding, for small models on a CPU.
    """
    context = cfg.text.context
    slots = min(slots, context)
    long_rows = 0 if slots == context else LONG_ROWS if long_rows is None else long_rows
    if parts > 1:  # lanes are divided over devices, so that fewer rows are not faster
        lanes = [round_up(rows, parts)]
        long_rows = round_up(long_rows, parts) if long_rows else 0
    else:
        ends = [n for n in FEWEST_ROWS if n < rows and not (few and n > 1)] + [rows]
        lanes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    lengths = [n for n in LENGTHS if n < context] + [context]
    if few:
        lengths = [n for n in (256, 512, 1024, 2048) if n < context] + [context]
    if slots not in lengths:
        lengths = sorted([*lengths, slots])
    picture = cfg.vision.patches
    prefixes = [slots] if few else sorted({min(round_up(picture + 48, 128), slots), slots})
    rest = [n for n in ((128,) if few else AFTER_PREFIX) if n < slots]
    together = [round_up(B, parts) for B in ((4, 1) if few else TOGETHER) if max(rows, 1) >= B]
    return Shapes(
        tuple(lanes),
        long_rows,
        slots,
        context,
        tuple(dict.fromkeys(together)),
        tuple(lengths),
        tuple(rest),
        tuple(prefixes),
        few,
    )
