"""Reads the tokens of steps that have been started, passes them on, and rolls back what is not allowed.

An answer that has a format is decoded like all others, ahead of the host and without a mask. Its tokens are
checked when they are read. Where one is not allowed, the row returns to its last token that is: this token
and those of later steps are dropped, and the next step selects among the allowed ids only. What the cache
and the ids of the row hold beyond its newest token is overwritten before it can be seen.
"""

import time
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np

from vipllava_jax.engine.device import Device
from vipllava_jax.engine.placing import Started
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.engine.reply import TokenLogprobs
from vipllava_jax.engine.rows import Row, Rows
from vipllava_jax.engine.stats import Counts
from vipllava_jax.generation.logits.next_token import NewTokens
from vipllava_jax.generation.programs import NOT_FINITE

TOGETHER = 4  # tokens that a row collects before they are passed on, if there are many rows; 8 of 128 rows
MANY = 16  # rows


class Reading:
    """The steps whose tokens have not been read, the oldest first."""

    def __init__(self, device: Device, rows: Rows, counts: Counts) -> None:
        self.device, self.rows, self.counts = device, rows, counts
        self.started: deque[Started] = deque()

    def start(self, started: Started) -> None:
        """Adds a step, whose tokens are copied to the host when they are computed."""
        for x in jax.tree.leaves(started.new):
            x.copy_to_host_async()
        self.started.append(started)

    def read(self) -> None:
        """Waits for the oldest tokens, and passes them on."""
        started = self.started.popleft()
        new = jax.tree.map(np.asarray, started.new)
        now = time.perf_counter()
        count = len(started.rows)
        together = max(TOGETHER, count // MANY) if count > MANY else 1
        rejected = []
        tokens = new.tokens.tolist()
        for n, row in started.rows:
            if row.ended:
                continue
            if tokens[n] == NOT_FINITE:
                self._fail(row, ValueError(NOT_FINITE_MESSAGE))
            elif row.accepts(tokens[n]):
                self.counts.new_tokens += 1
                row.add(tokens[n], _report(row, new, n))
                if len(row.new) >= together or tokens[n] in row.ends or row.is_complete:
                    row.flush(now)
            elif not row.reply.done:  # otherwise its place may have been given to another row
                rejected.append(row)
            if row.ended:
                self.rows.release(row)
        if rejected:
            self._roll_back(rejected)

    def _fail(self, row: Row, error: Exception) -> None:
        row.reply.fail(error)
        row.ended = True
        self.rows.release(row)

    def _roll_back(self, rejected: Sequence[Row]) -> None:
        """Returns rows to the last tokens that their formats allow."""
        for row in rejected:
            try:
                row.roll_back()
            except QuestionError as error:
                self._fail(row, error)
        rows = [row for row in rejected if not row.ended]
        for started in self.started:
            started.rows[:] = [(n, row) for n, row in started.rows if row not in rows]
        self.device.rewind([(row.place, row.ids[-1], row.position) for row in rows])
        self.counts.rollbacks += len(rows)


def _report(row: Row, new: NewTokens, n: int) -> TokenLogprobs | None:
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
