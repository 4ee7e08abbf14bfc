"""Chooses which of the waiting questions are prefilled next, together and how."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from vipllava_jax.engine.prefix_store import PrefixStore
from vipllava_jax.engine.programs import PICTURES
from vipllava_jax.engine.shapes import Shapes
from vipllava_jax.engine.waiting import Waiting
from vipllava_jax.generation.plan import ENOUGH_SAVED

LOOKED_AT = 256  # questions, the oldest first, among which those are found that go together
FILLED = 0.7  # the part of a prefill's rows that must be used: two prompts are quicker one by one


class Admission(NamedTuple):
    """Questions that are prefilled together, padded to B rows."""

    items: list[Waiting]
    B: int
    long: bool = False  # whether their rows are those of the long lane
    key: bytes | None = None  # of the stored prefix with which all of them begin
    shared: bool = False  # whether their rows share this prefix; otherwise they have copies of it

    @property
    def answers(self) -> int:
        """The number of rows that they need."""
        return sum(len(item.samples) for item in self.items)


class Admissions(NamedTuple):
    """What the choice depends on besides the questions."""

    shapes: Shapes
    store: PrefixStore
    alone: bool = False  # prefill each question alone and whole, so that nothing else influences it

    def choose(
        self, waiting: Sequence[Waiting], free: int, free_long: int, shared: bytes | None
    ) -> Admission | None:
        """The oldest question with others that go with it; None while it has no free rows.

        `free` and `free_long` are the numbers of free rows, and `shared` is the key of the prefix that rows
        share now.
        """
        head = waiting[0]
        long = self.shapes.is_long(len(head.ids))
        free = free_long if long else free
        if free < len(head.samples):
            return None
        if long or self.alone:
            return Admission([head], self.shapes.together[-1], long)
        alike = [item for item in islice(waiting, LOOKED_AT) if not self.shapes.is_long(len(item.ids))]
        if self._is_stored(head):
            return self._after_prefix(head, alike, free, shared)
        same_picture = [item for item in alike if item.key == head.key]
        if head.key and len(same_picture) > 1 and self.store.capacity:
            return Admission([head], self.shapes.together[-1])  # the others follow its prefix
        return self._whole(head, alike, free)

    def _is_stored(self, item: Waiting) -> bool:
        """Whether an item is prefilled after a stored prefix."""
        if item.key is None or item.key not in self.store:
            return False
        return 0 < len(item.ids) - item.prefix <= self.shapes.rest_lengths[-1]

    def _after_prefix(
        self, head: Waiting, alike: Sequence[Waiting], free: int, shared: bytes | None
    ) -> Admission:
        """Questions that begin with the same stored prefix."""
        same = [item for item in alike if item.key == head.key and self._is_stored(item)]
        rows = sum(len(item.samples) for item in same)
        is_enough = shared == head.key or (shared is None and rows * head.prefix >= ENOUGH_SAVED)
        if not is_enough or head.prefix > self.shapes.prefix_slots[0]:
            return Admission([head], self.shapes.together[-1], key=head.key)
        B = self.shapes.rest_together
        return Admission(self._fitting(same, free, B), B, key=head.key, shared=True)

    def _whole(self, head: Waiting, alike: Sequence[Waiting], free: int) -> Admission:
        """Questions whose prompts are padded to the same length, with different pictures."""
        length = self.shapes.length_for(len(head.ids))
        found, keys = [], set()
        for item in alike:
            is_other = item.key is None or (item.key not in keys and not self._is_stored(item))
            if is_other and self.shapes.length_for(len(item.ids)) == length:
                found.append(item)
                keys.add(item.key)
        sizes = [B for B in self.shapes.together if self.shapes.fits(B, length)]
        for B in sizes:
            taken = self._fitting(found, free, B)
            if len(taken) >= FILLED * B or sizes[-1] == B:
                return Admission(taken, B)
        raise AssertionError(f'no prefill has the length {length}')

    def _fitting(self, items: Sequence[Waiting], free: int, most: int) -> list[Waiting]:
        """The first items, at most so many, whose answers have free rows, and whose pictures fit."""
        taken: list[Waiting] = []
        pictures = 0
        for item in items:
            pictures += len(item.pictures)
            free -= len(item.samples)
            if len(taken) == most or free < 0 or (pictures > PICTURES and taken):
                break
            taken.append(item)
        return taken
