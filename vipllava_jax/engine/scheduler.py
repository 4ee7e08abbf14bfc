"""The loop of an engine's thread: prefills waiting questions, decodes all rows, and passes tokens on.

The device works through what the thread starts. The thread reads the tokens of a step when the next ones
have been started, so that the device never waits for it: rows that end are decoded for IN_FLIGHT more steps,
whose tokens are dropped.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vipllava_jax.engine.admission import Admission, Admissions
from vipllava_jax.engine.device import Device, Place, Prefilled, Selection
from vipllava_jax.engine.prefix_store import PrefixStore
from vipllava_jax.engine.reply import TokenLogprobs
from vipllava_jax.engine.rows import Row, Rows
from vipllava_jax.engine.stats import Counts
from vipllava_jax.engine.waiting import Waiting, going_on
from vipllava_jax.generation.logits.next_token import NewTokens
from vipllava_jax.generation.programs import NOT_FINITE
from vipllava_jax.model.llama import PrefixCache

IN_FLIGHT = 2  # steps that have been started and whose tokens have not been read
TOGETHER = 4  # tokens that a row collects before they are passed on, if there are many rows
MANY = 16  # rows


class Started(NamedTuple):
    """Tokens that the device computes, and the rows that they belong to."""

    new: NewTokens
    rows: list[tuple[int, Row]]  # with their numbers in the arrays


class Scheduler:
    """Answers the questions that are added to it; all methods run in one thread."""

    def __init__(self, device: Device, store: PrefixStore, counts: Counts, exact: bool = False) -> None:
        self.device, self.store, self.counts, self.exact = device, store, counts, exact
        self.shapes = device.shapes
        self.rows = Rows(device.shapes)
        self.waiting: deque[Waiting] = deque()
        self.admissions = Admissions(device.shapes, store, alone=exact)
        self._started: deque[Started] = deque()
        self._shared: tuple[bytes, PrefixCache] | None = None  # the prefix that rows share, with its key

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waiting and not self._started and not len(self.rows)

    def turn(self) -> None:
        """Prefills questions, starts a step of all rows, and passes on the tokens of earlier ones."""
        self._release_ended()
        admission = self._next_admission()
        if admission:
            self._admit(admission)
        if len(self.rows):
            self._step()
        while len(self._started) > (IN_FLIGHT if len(self.rows) else 0):
            self._read()

    def fail(self, error: BaseException) -> None:
        """Ends all questions with an error."""
        replies = [item.reply for item in self.waiting] + [row.reply for row in self.rows]
        replies += [row.reply for started in self._started for _, row in started.rows]
        for reply in replies:
            reply.fail(error)

    # Questions are admitted

    def _next_admission(self) -> Admission | None:
        if not self.waiting:
            return None
        free, free_long = self.rows.free(), self.rows.free(long=True)
        if len(self.rows) and not self.exact:  # wait for as many rows as are prefilled together
            gate = min(self.shapes.together[0], max(1, self.shapes.rows // 8))
            if free < min(len(self.waiting), gate) and not self.shapes.is_long(len(self.waiting[0].ids)):
                return None
        shared = self._shared[0] if self._shared else None
        return self.admissions.choose(self.waiting, free, free_long, shared)

    def _admit(self, admission: Admission) -> None:
        taken = {*map(id, admission.items)}
        self.waiting = deque(item for item in self.waiting if id(item) not in taken)
        prefilled, cached = self._prefill(admission)
        for item in admission.items:
            if item.reply.times.started is None:
                item.reply.started(len(item.reply.question.ids), item.prefix if cached else 0)
        if not any(item.settings for item in admission.items):
            self._occupy_greedy(admission, prefilled)
        else:
            self._occupy(admission, prefilled)

    def _occupy_greedy(self, admission: Admission, prefilled: Prefilled) -> None:
        """Selects the likeliest tokens after all prompts at once, and occupies rows with them."""
        new = self.device.first_tokens(prefilled)
        rows = []
        for b, item in enumerate(admission.items):
            for sample in item.samples:
                row = self._new_row(item, sample, admission)
                self._put(row, prefilled, b, new, b, None)
                rows.append((b, row))
        self._start(new, rows)

    def _occupy(self, admission: Admission, prefilled: Prefilled) -> None:
        """Selects the first token of each answer by its own settings, and occupies rows with them."""
        for b, item in enumerate(admission.items):
            for n, sample in enumerate(item.samples):
                row = self._new_row(item, sample, admission)
                settings = item.settings[n] if item.settings else self.device.neutral
                new, settings = self.device.first_token(prefilled, b, settings, item.selection)
                self._put(row, prefilled, b, new, 0, settings)
                self._start(new, [(0, row)])

    def _put(
        self, row: Row, prefilled: Prefilled, source: int, new: NewTokens, number: int, settings: Any
    ) -> None:
        """Occupies the place of a new row, unless its answer is complete with the first token."""
        if not row.left:
            return
        self.rows.occupy(row)
        self.device.put(row.place, prefilled, source, new, number, row.position)
        if row.selection is not Selection.GREEDY:
            self.device.put_settings(row.place, settings)
            self.rows.dirty.add(row.place)
        elif row.place in self.rows.dirty:  # of an earlier answer
            self.device.put_settings(row.place, self.device.neutral)
            self.rows.dirty.remove(row.place)

    def _prefill(self, admission: Admission) -> tuple[Prefilled, bool]:
        """Prefills questions -> the result, and whether they follow a stored prefix."""
        items = admission.items
        if admission.key:
            prefix = self.store.get(admission.key)
            assert prefix is not None
            rests = [item.ids[item.prefix :] for item in items]
            if admission.shared:
                self._shared = admission.key, prefix
            self.counts.prefix_hits += len(items)
            self.counts.cached_tokens += sum(item.prefix for item in items)
            joined = not admission.shared
            return self.device.prefill_after(rests, admission.B, prefix, joined=joined), True
        pictures = [picture for item in items for picture in item.pictures]
        features = self.device.features(pictures) if pictures else None
        prefilled = self.device.prefill([item.ids for item in items], admission.B, features)
        for b, item in enumerate(items):
            if item.key and self.store.capacity and item.prefix <= self.shapes.slots and not self.exact:
                self.store.put(item.key, self.device.prefix_of(prefilled, b, item.prefix))
        return prefilled, False

    def _new_row(self, item: Waiting, sample: int, admission: Admission) -> Row:
        left = item.left - 1
        question = item.reply.question
        return Row(
            waiting=item,
            sample=sample,
            place=self.rows.first_free(admission.long) if left else (0, 0),
            position=len(item.ids),
            left=left,
            ends=frozenset((*question.eos, *question.stop_ids)),
            prefix=item.prefix if admission.shared else 0,
        )

    # Rows are decoded

    def _step(self) -> None:
        if self.exact:
            group = [*self.shapes.groups()][-1]
        else:
            self._make_room()
            if not self.waiting:
                self._move_up()
            group = self.shapes.group_for([any(lane) for lane in self.rows.lanes])
        members = any(row.prefix for row in self.rows)
        if not members:
            self._shared = None
        elif not {*range(len(self.shapes.lanes))} <= {*group}:
            group = self.shapes.group_with_all_short(group)
        rows = self.rows.in_group(group)
        if not rows:
            return
        selection = max(row.selection for _, row in rows)
        new = self.device.step(group, self.rows.active(group), selection, self._prefix(group))
        self.counts.steps += 1
        self.counts.row_steps += len(rows)
        for _, row in rows:
            row.position += 1
            row.left -= 1
            if not row.left:
                self.rows.release(row)
        self._start(new, rows)

    def _prefix(self, group: Sequence[int]) -> PrefixCache | None:
        """The prefix that rows of some lanes share, with its members."""
        if self._shared is None:
            return None
        rows = [row for lane in group for row in self.rows.lanes[lane]]
        members = np.array([row is not None and row.prefix > 0 for row in rows])
        return dataclasses.replace(self._shared[1], members=members)

    def _make_room(self) -> None:
        """Moves rows that have filled their slots into the long lane, or lets them wait for one there."""
        for row in [row for row in self.rows if row.slot >= self.shapes.sizes[row.place[0]][1]]:
            if self.rows.free(long=True) and not row.prefix:
                self._move(row, self.rows.first_free(long=True))
                continue
            while self._started:  # its ids are needed
                self._read()
            self.rows.release(row)
            if not row.ended:
                row.flush(time.perf_counter())
                self.waiting.appendleft(going_on(row.waiting, row.sample, row.ids, self.shapes))

    def _move_up(self) -> None:
        """Moves rows into earlier lanes if they fit there, so that fewer rows are decoded."""
        while (row := self.rows.misplaced()) is not None:
            self._move(row, self.rows.first_free())

    def _move(self, row: Row, place: Place) -> None:
        self.device.move(row.place, place, row.position)
        if row.place in self.rows.dirty:
            self.rows.dirty.add(place)
        self.rows.release(row)
        row.place = place
        self.rows.occupy(row)

    def _release_ended(self) -> None:
        """Makes the rows of replies free that were cancelled, and drops those that wait."""
        for row in [row for row in self.rows if row.reply.done]:
            self.rows.release(row)
        if any(item.reply.done for item in self.waiting):
            self.waiting = deque(item for item in self.waiting if not item.reply.done)

    # Tokens are passed on

    def _start(self, new: NewTokens, rows: list[tuple[int, Row]]) -> None:
        for x in jax.tree.leaves(new):
            x.copy_to_host_async()
        self._started.append(Started(new, rows))

    def _read(self) -> None:
        """Waits for the oldest tokens, and passes them on."""
        started = self._started.popleft()
        new = jax.tree.map(np.asarray, started.new)
        now = time.perf_counter()
        together = TOGETHER if len(started.rows) > MANY else 1
        tokens = new.tokens.tolist()
        for n, row in started.rows:
            if row.ended:
                continue
            if tokens[n] == NOT_FINITE:
                row.reply.fail(ValueError(NOT_FINITE_MESSAGE))
                row.ended = True
            else:
                self.counts.new_tokens += 1
                row.add(tokens[n], self._report(row, new, n))
                if len(row.new) >= together or tokens[n] in row.ends or row.is_complete:
                    row.flush(now)
            if row.ended:
                self.rows.release(row)

    def _report(self, row: Row, new: NewTokens, n: int) -> TokenLogprobs | None:
        """What is reported of a token, if its row asks for it."""
        top = row.reply.question.settings.logprobs
        if top is None:
            return None
        found = (tuple(new.top_ids[n, :top].tolist()), tuple(new.top_logprobs[n, :top].tolist()))
        return TokenLogprobs(float(new.logprobs[n]), *found)


NOT_FINITE_MESSAGE = (
    'the logits hold NaN or infinity: the weights or the pictures are damaged; vipllava info --check FOLDER '
    'examines the weights'
)
