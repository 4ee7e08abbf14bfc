"""The loop of an engine's thread: prefills waiting questions, decodes all rows, and passes tokens on.

The device works through what the thread starts. The thread reads the tokens of a step when the next ones
have been started, so that the device never waits for it: rows that end are decoded for IN_FLIGHT more steps,
whose tokens are dropped.
"""

import bisect
import dataclasses
import time
from collections import deque
from collections.abc import Iterable
from itertools import islice

import numpy as np

from vipllava_jax.engine.admission import LOOKED_AT, Admission, Admissions
from vipllava_jax.engine.device import Device, Prefilled
from vipllava_jax.engine.placing import Placing, Started
from vipllava_jax.engine.prefix_store import PrefixStore
from vipllava_jax.engine.reading import Reading
from vipllava_jax.engine.rows import Row, Rows
from vipllava_jax.engine.stats import Counts
from vipllava_jax.engine.waiting import Waiting, going_on
from vipllava_jax.model.llama import PrefixCache

IN_FLIGHT = 2  # steps that have been started and whose tokens have not been read


class Scheduler:
    """Answers the questions that are added to it; all methods run in one thread."""

    def __init__(self, device: Device, store: PrefixStore, counts: Counts, exact: bool = False) -> None:
        self.device, self.store, self.counts, self.exact = device, store, counts, exact
        self.shapes = device.shapes
        self.rows = Rows(device.shapes)
        self.placing = Placing(device, self.rows)
        self.reading = Reading(device, self.rows, counts)
        self.waiting: deque[Waiting] = deque()  # the ones of the lowest priority number first
        self.admissions = Admissions(device.shapes, store, alone=exact)
        self._shared: tuple[bytes, PrefixCache] | None = None  # the prefix that rows share, with its key

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waiting and not self.reading.started and not len(self.rows)

    def add(self, items: Iterable[Waiting]) -> None:
        """Adds questions behind those that are as urgent."""
        for item in items:
            bisect.insort(self.waiting, item, key=lambda item: item.priority)

    def turn(self) -> None:
        """Prefills questions, starts a step of all rows, and passes on the tokens of earlier ones."""
        self._release_ended()
        if not any(row.prefix for row in self.rows.at(0)):
            self._shared = None
        was_idle = not len(self.rows)
        admission = self._next_admission()
        kept = self._admit(admission) if admission else None
        if len(self.rows):
            self._steps()
        if kept and not was_idle:
            self._keep_prefixes(*kept)
        in_flight = 1 if was_idle else IN_FLIGHT  # the first token of a lone answer is passed on at once
        while len(self.reading.started) > (in_flight if len(self.rows) else 0):
            self.reading.read()
        if kept and was_idle:
            self._keep_prefixes(*kept)

    def fail(self, error: BaseException) -> None:
        """Ends all questions with an error."""
        replies = [item.reply for item in self.waiting] + [row.reply for row in self.rows]
        replies += [row.reply for started in self.reading.started for _, row in started.rows]
        for reply in replies:
            reply.fail(error)

    # Questions are admitted

    def _next_admission(self) -> Admission | None:
        if not self.waiting:
            return None
        self._halve_rows()
        free, sharing = self.rows.free(), self.rows.free_sharing()
        if len(self.rows) and not self.exact:
            sizes = [rows for rows, _ in self.shapes.levels]
            free = [self._gated(*level) for level in zip(free, sizes, strict=True)]
            sharing = self._gated(sharing, sizes[0])
        shared = self._shared[0] if self._shared else None
        return self.admissions.choose(self.waiting, free, shared, sharing)

    def _gated(self, free: int, rows: int) -> int:
        """The number of free rows; 0 until there are as many as are prefilled together."""
        gate = min(self.shapes.together[0], max(1, rows // 8), len(self.waiting))
        return free if free >= gate else 0

    def _admit(self, admission: Admission) -> tuple[Admission, Prefilled] | None:
        """Prefills questions and occupies rows -> what `_keep_prefixes` takes, if anything is to be kept."""
        taken = {*map(id, admission.items)}
        self.waiting = deque(item for item in self.waiting if id(item) not in taken)
        prefilled, cached = self._prefill(admission)
        self.counts.prefix_queries += sum(item.key is not None for item in admission.items)
        self.counts.prefix_hits += len(admission.items) if cached else 0
        for item in admission.items:
            if item.reply.times.started is None:
                item.reply.started(len(item.reply.question.ids), item.prefix if cached else 0)
        if admission.shared:
            assert admission.key
            self.placing.use_lane_for_sharing(admission.key)
        elif admission.level:
            self._use_lane(self.shapes.lane_of(0))  # a lane for few rows may be in the cache of this level
        else:
            # Answers are not moved again and again while more and more come.
            count = len(self.rows.at(0)) + admission.answers + len(self.waiting)
            self._use_lane(self.rows.lane_for(count))
        for started in self.placing.occupy(admission, prefilled):
            self.reading.start(started)
        return (admission, prefilled) if self.store.capacity and not cached else None

    def _prefill(self, admission: Admission) -> tuple[Prefilled, bool]:
        """Prefills questions -> the result, and whether they follow a stored prefix."""
        items = admission.items
        if admission.key:
            prefix = self.store.get(admission.key)
            assert prefix is not None
            rests = [item.ids[item.prefix :] for item in items]
            if admission.shared:
                self._shared = admission.key, prefix
            self.counts.cached_tokens += sum(item.prefix for item in items)
            joined = not admission.shared
            return self.device.prefill_after(rests, admission.B, prefix, joined=joined), True
        pictures = [picture for item in items for picture in item.pictures]
        features = self.device.features(pictures) if pictures else None
        prefilled = self.device.prefill([item.ids for item in items], admission.B, features)
        return prefilled, False

    def _keep_prefixes(self, admission: Admission, prefilled: Prefilled) -> None:
        """Stores the beginnings of prompts with pictures, for a 7B on an H200 in 1.7 ms each.

        While many questions wait, only those of pictures that have been asked about before.
        """
        for b, item in enumerate(admission.items):
            if item.key and item.prefix <= self.shapes.slots:
                is_known = self.store.notice(item.key) or admission.keep
                is_new = item.key not in self.store
                if is_new and (is_known or len(self.waiting) < self.shapes.together[0]):
                    self.store.put(item.key, self.device.prefix_of(prefilled, b, item.prefix))

    # Rows are decoded

    def _steps(self) -> None:
        """Starts a step of all rows."""
        self._make_room()
        count, top = len(self.rows.at(0)), self.rows.top
        if count and top:
            self._use_lane(self.rows.lane_for(count))
        elif count and not self.waiting:
            # At most half full, so that the lane does not change with every answer that comes or ends.
            smaller = self.rows.lane_for(2 * count if count > 1 else count)
            self._use_lane(min(smaller, self.rows.lane))
        busy = [level for level in range(top + 1) if self.rows.at(level)]
        if len(busy) > 1 and not self._shared and not self.exact:
            self._step(tuple(map(self.shapes.lane_of, range(top + 1))))
        else:
            for level in busy:
                self._step((self.shapes.lane_of(level) if level else self.rows.lane,))

    def _step(self, group: tuple[int, ...]) -> None:
        """Starts a step of the rows of some lanes."""
        rows = self.rows.in_group(group)
        selection = max(row.selection for _, row in rows)
        prefix = self._prefix(group)
        allowed = {n: row.allowed for n, row in rows if row.allowed is not None}
        new = self.device.step(group, self.rows.active(group), selection, prefix, allowed)
        running = [(n, row) for n, row in rows if row.left]  # not those whose last token has been started
        self.counts.steps += 1
        self.counts.row_steps += len(running)
        self.counts.lane_steps += sum(self.shapes.sizes[lane][0] for lane in group)
        for _, row in running:
            row.position += 1
            row.left -= 1
            row.allowed = None
            if not row.left and not row.matcher:  # others keep their places, in case they are rolled back
                self.rows.release(row)
        self.reading.start(Started(new, running))

    def _prefix(self, group: tuple[int, ...]) -> PrefixCache | None:
        """The prefix that rows of level 0 share, with its members."""
        if self._shared is None or group != (self.rows.lane,):
            return None
        members = np.array([row is not None and row.prefix > 0 for row in self.rows.lanes[self.rows.lane]])
        return dataclasses.replace(self._shared[1], members=members)

    def _make_room(self) -> None:
        """Moves rows that have filled their slots to a higher level, or lets them wait for a row there."""
        for row in [*filter(self._is_full, self.rows)]:
            if row.ended or not self._is_full(row):  # by what was read for a row before it in this loop
                continue
            level = self._free_level_above(row)
            if level and not row.prefix:
                self._use_lane(self.shapes.lane_of(0))  # as in `_admit`
                self.placing.move(row, self.shapes.lane_of(level))
                continue
            while self.reading.started:  # its ids are needed
                self.reading.read()
            if not self._is_full(row):  # it was rolled back
                continue
            self.rows.release(row)
            if not row.ended:
                row.flush(time.perf_counter())
            if not row.ended:
                matchers = (row.matcher,) if row.matcher else ()
                self.waiting.appendleft(going_on(row.waiting, row.sample, row.ids, matchers, self.shapes))

    def _is_full(self, row: Row) -> bool:
        """Whether the next step of a row needs a slot that it does not have."""
        return row.left > 0 and row.slot >= self.shapes.sizes[row.place[0]][1]

    def _free_level_above(self, row: Row) -> int:
        """The first level with a free row of more slots than a row has; 0 if there is none."""
        slots = self.shapes.sizes[row.place[0]][1]
        levels = zip(range(len(self.shapes.levels)), self.shapes.levels, self.rows.free(), strict=True)
        return next((level for level, (_, size), free in levels if size > slots and free), 0)

    def _use_lane(self, lane: int) -> None:
        """Moves the answers of level 0 into another lane, if it is not the one in use."""
        if self._shared is None:
            self.placing.use_lane(self.shapes.lane_of(0) if self.exact else lane)

    def _halve_rows(self) -> None:
        """Makes twice as many rows for answers that share a prefix, if more questions wait than have room."""
        if self._shared and self.shapes.halved and not self.rows.is_halved:
            key = self._shared[0]
            same = (item for item in islice(self.waiting, LOOKED_AT) if item.key == key)
            if sum(len(item.samples) for item in same) > self.rows.free_sharing():
                self.placing.halve()

    def _release_ended(self) -> None:
        """Makes the rows of replies free that were cancelled, and drops those that wait."""
        for row in [row for row in self.rows if row.reply.done]:
            self.rows.release(row)
        if any(item.reply.done for item in self.waiting):
            self.waiting = deque(item for item in self.waiting if not item.reply.done)
