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
EXPECTED_NEW = 256  # tokens of an answer, at most, for which a row is chosen; most answers are shorter
FILLED = 0.7  # the part of a prefill's rows that must be used: two prompts are quicker one by one


class Admission(NamedTuple):
    """Questions that are prefilled together, padded to B rows, and put into rows of one level."""

    items: list[Waiting]
    B: int
    level: int
    key: bytes | None = None  # of the stored prefix with which all of them begin
    shared: bool = False  # whether their rows share this prefix; otherwise they have copies of it
    keep: bool = False  # whether another question begins as this one does

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
        self, waiting: Sequence[Waiting], free: Sequence[int], shared: bytes | None, sharing: int
    ) -> Admission | None:
        """The oldest question that has free rows, with others that go with it; None if there is none.

        `free` are the numbers of free rows of each level, `shared` is the key of the prefix that rows share
        now, and `sharing` the number of free rows for questions that begin with it. These wait for such rows:
        every other level that is in use makes a step of its own.
        """
        if not any(free) and not sharing:
            return None
        left = [*free]
        for item in islice(waiting, LOOKED_AT):
            own = self.level_for(item)
            if shared and item.key == shared and not own and self._is_stored(item):
                if sharing >= len(item.samples):
                    return self._with_others(item, 0, waiting, sharing, shared)
                sharing = 0
                continue
            for level in range(own, len(left)):
                if left[level] >= len(item.samples):
                    return self._with_others(item, level, waiting, free[level], shared)
                if len(item.samples) > 1:
                    left[level] = 0  # so that it gets its rows before those that came later
            if not own:
                sharing = 0  # likewise
        return None

    def level_for(self, item: Waiting) -> int:
        """The level of rows in which the answers to a question are expected to fit."""
        return self.shapes.level_for(len(item.ids), min(item.left, EXPECTED_NEW))

    def _with_others(
        self, head: Waiting, level: int, waiting: Sequence[Waiting], free: int, shared: bytes | None
    ) -> Admission:
        one = self.shapes.together[-1]
        if self.alone:
            return Admission([head], one, level)
        own = self.level_for(head)
        alike = [item for item in islice(waiting, LOOKED_AT) if self.level_for(item) == own]
        if self._is_stored(head):
            return self._after_prefix(head, level, alike, free, shared)
        same = [item for item in alike if item.key == head.key]
        if head.key and len(same) > 1 and self.store.capacity and head.prefix <= self.shapes.slots:
            return Admission([head], one, level, keep=True)  # the others follow its prefix
        return self._whole(head, level, alike, free)

    def _is_stored(self, item: Waiting) -> bool:
        """Whether an item is prefilled after a stored prefix."""
        if item.key is None or item.key not in self.store:
            return False
        rest = len(item.ids) - item.prefix
        return 0 < rest <= self.shapes.rest_lengths[-1] and len(item.ids) <= self.shapes.slots

    def _after_prefix(
        self, head: Waiting, level: int, alike: Sequence[Waiting], free: int, shared: bytes | None
    ) -> Admission:
        """Questions that begin with the same stored prefix."""
        same = [item for item in alike if item.key == head.key and self._is_stored(item)]
        rows = sum(len(item.samples) for item in same)
        is_enough = shared == head.key or (shared is None and rows * head.prefix >= ENOUGH_SAVED)
        if level or not is_enough or head.prefix > self.shapes.prefix_slots[0]:
            return Admission([head], self.shapes.together[-1], level, key=head.key)
        B = self.shapes.rest_together
        return Admission(fitting(same, free, B), B, level, key=head.key, shared=True)

    def _whole(self, head: Waiting, level: int, alike: Sequence[Waiting], free: int) -> Admission:
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
            taken = fitting(found, free, B, PICTURES)
            if len(taken) >= FILLED * B or sizes[-1] == B:
                return Admission(taken, B, level)
        raise AssertionError(f'no prefill has the length {length}')


def fitting(items: Sequence[Waiting], free: int, most: int, pictures: int | None = None) -> list[Waiting]:
    """The first items, at most `most`, whose answers fit the free rows, with at most so many pictures."""
    taken: list[Waiting] = []
    count = 0
    for item in items:
        count += len(item.pictures)
        free -= len(item.samples)
        if len(taken) == most or free < 0 or (taken and pictures is not None and count > pictures):
            break
        taken.append(item)
    return taken
