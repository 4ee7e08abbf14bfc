"""Puts prefilled questions into rows, and moves rows to other lanes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vipllava_jax.engine.admission import Admission
from vipllava_jax.engine.device import Device, Place, Prefilled
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.engine.rows import Row, Rows
from vipllava_jax.engine.waiting import Waiting
from vipllava_jax.generation.logits.next_token import NewTokens


class Started(NamedTuple):
    """Tokens that the device computes, and the rows that they belong to."""

    new: NewTokens
    rows: list[tuple[int, Row]]  # with their numbers in the arrays


class Placing:
    """Decides in which rows answers are generated, and keeps the rows of the host and the device alike."""

    def __init__(self, device: Device, rows: Rows) -> None:
        self.device, self.rows, self.shapes = device, rows, device.shapes

    def occupy(self, admission: Admission, prefilled: Prefilled) -> Iterator[Started]:
        """Selects the first tokens of prefilled questions, and occupies rows with them."""
        self._limit(admission, prefilled)
        rounds = range(max(len(item.samples) for item in admission.items))
        if not any(item.settings for item in admission.items):
            new = self.device.first_tokens(prefilled)
            rows = [self._greedy_rows(admission, n, prefilled, new) for n in rounds]
            yield Started(new, [row for of_round in rows for row in of_round])
            return
        for n in rounds:
            yield from self._rows_with_settings(admission, n, prefilled)

    def _limit(self, admission: Admission, prefilled: Prefilled) -> None:
        """Limits the first tokens of answers to those that their formats allow."""
        for b, item in enumerate(admission.items):
            if item.matchers:
                try:
                    prefilled.allowed[b] = item.matchers[0].allowed()  # the samples have the same beginning
                except QuestionError as error:
                    item.reply.fail(error)

    def _greedy_rows(
        self, admission: Admission, n: int, prefilled: Prefilled, new: NewTokens
    ) -> list[tuple[int, Row]]:
        """Occupies rows with answer n of each question, which begins with the likeliest token."""
        rows = self._new_rows(admission, n)
        self._put(prefilled, rows, new.tokens)
        for _, row in rows:
            if row.left and row.place in self.rows.dirty:  # the settings of an earlier answer
                self.device.put_settings(row.place, self.device.neutral)
                self.rows.dirty.remove(row.place)
        return rows

    def _rows_with_settings(self, admission: Admission, n: int, prefilled: Prefilled) -> Iterator[Started]:
        """Occupies rows with answer n of each question, whose first token is selected by its own settings."""
        rows = self._new_rows(admission, n)
        self._put(prefilled, rows, self.device.no_tokens[len(prefilled.lengths)])
        for b, row in rows:
            item = row.waiting
            settings = item.settings[n] if item.settings else self.device.neutral
            new, used = self.device.first_token(prefilled, b, settings, item.selection)
            if row.left:
                self.device.put_token(row.place, new)
                self.device.put_settings(row.place, used)
                self.rows.dirty.add(row.place)
            yield Started(new, [(0, row)])

    def _new_rows(self, admission: Admission, n: int) -> list[tuple[int, Row]]:
        """The rows of answer n of each question that has so many, with the numbers of the questions."""
        rows = []
        for b, item in enumerate(admission.items):
            if n < len(item.samples):
                row = self._new_row(item, n, admission)
                if row.left:
                    self.rows.occupy(row)
                rows.append((b, row))
        return rows

    def _put(self, prefilled: Prefilled, rows: Sequence[tuple[int, Row]], tokens: Any) -> None:
        """Copies prefilled rows into their places; an answer that its first token completes has none."""
        placed = [(b, row) for b, row in rows if row.left]
        if not placed:
            return
        B, lane = len(prefilled.lengths), placed[0][1].place[0]
        beyond = len(self.rows.lanes[lane])  # rows that the lane does not have, each another one
        targets, positions = [*range(beyond, beyond + B)], [0] * B
        for b, row in placed:
            targets[b], positions[b] = row.place[1], row.position
        self.device.put(lane, targets, prefilled, tokens, positions)

    def _new_row(self, item: Waiting, n: int, admission: Admission) -> Row:
        left = item.left - 1
        question = item.reply.question
        return Row(
            waiting=item,
            sample=item.samples[n],
            place=self.rows.first_free(self._lane_of(admission)) if left else (0, 0),
            position=len(item.ids),
            left=left,
            ends=frozenset((*question.eos, *question.stop_ids)),
            prefix=item.prefix if admission.shared else 0,
            matcher=item.matchers[n] if item.matchers else None,
        )

    def _lane_of(self, admission: Admission) -> int:
        return self.shapes.lane_of(admission.level) if admission.level else self.rows.lane

    def use_lane(self, lane: int) -> None:
        """Moves the answers of level 0 into another lane, if it is not the one in use."""
        if lane != self.rows.lane:
            rows, self.rows.lane = self.rows.at(0), lane
            for row in rows:
                self.move(row, lane)

    def use_lane_for_sharing(self, key: bytes) -> None:
        """Moves the answers of level 0 into the largest lane, where those share a prefix that begin with it.

        `key` is that of the prefix.
        """
        largest = self.shapes.lane_of(0)
        if self.rows.lane in (largest, self.shapes.halved_lane):
            return
        rows, self.rows.lane = self.rows.at(0), largest
        for row in rows:
            own = row.slot - row.waiting.prefix
            shares = row.waiting.key == key and self.shapes.halved and own < self.shapes.slots // 2
            self.move(row, largest, row.waiting.prefix if shares else 0)
            row.prefix = row.waiting.prefix if shares else 0

    def halve(self) -> None:
        """Makes two rows of each row of level 0, if all answers share a prefix and have few tokens after it.

        Nothing is copied: an answer stays in the first of the two.
        """
        rows, halved = self.rows.at(0), self.shapes.halved_lane
        if not halved or self.rows.lane != self.shapes.lane_of(0):
            return
        if any(not row.prefix or row.slot >= self.shapes.sizes[halved][1] for row in rows):
            return
        self.device.halve()
        for row in rows:
            self.rows.release(row)
        self.rows.lane = halved
        for row in rows:
            self._settle(row, (halved, 2 * row.place[1]))

    def move(self, row: Row, lane: int, prefix: int = 0) -> None:
        """Moves an answer to the first free row of another lane, without its first `prefix` tokens."""
        place = self.rows.first_free(lane)
        self.device.move(row.place, place, row.position, prefix)
        self._settle(row, place)

    def _settle(self, row: Row, place: Place) -> None:
        """Lets an answer occupy another place, into which the device has copied its settings, too."""
        (self.rows.dirty.add if row.place in self.rows.dirty else self.rows.dirty.discard)(place)
        self.rows.release(row)
        row.place = place
        self.rows.occupy(row)
