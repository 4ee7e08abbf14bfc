"""Answers a prepared batch, with progress on stderr."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from signal import Signals
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.batch_plan import PreparedBatch
from vipllava_jax.cli.models import load_model
from vipllava_jax.cli.waiting import count_bar, pace_bar
from vipllava_jax.messages import duration, printable
from vipllava_jax.signals import catch_signals

if TYPE_CHECKING:
    from vipllava_jax.batch_files.output import Output
    from vipllava_jax.batch_files.pending import PendingRows
    from vipllava_jax.batch_files.questions import RowQuestion
    from vipllava_jax.batch_files.run_file import Run
    from vipllava_jax.engine.engine import Engine


def answer_all(plan: PreparedBatch, retry_errors: bool, options: dict[str, Any]) -> 'Run':
    """Answers the rows that have no line yet, with these options of the engine; returns what is there then.

    The weights are loaded only if there is a question. A signal ends the command with the code of a shell.
    """
    from vipllava_jax.batch_files.output import is_complete, open_output
    from vipllava_jax.batch_files.pending import PendingRows, first_question
    from vipllava_jax.batch_files.run_file import Run

    done = is_complete(plan.output, plan.settings) if plan.input.path else None
    if done and done.complete and not (retry_errors and done.complete['errors']):
        return done
    with open_output(plan.output, plan.settings, retry_errors) as output:
        make = plan.maker(output.settings)
        pending = PendingRows(plan.input.rows, make, plan.shard, output.ids)
        if first := first_question(pending, output):
            with telling_what_is_kept(output), open_engine(plan, options) as engine:
                answer(engine, first, pending, output, plan.input.rows.size)
        output.complete()
        return Run(output.settings, output.counts())


@contextmanager
def open_engine(plan: PreparedBatch, options: dict[str, Any]) -> Iterator['Engine']:
    """Loads the weights while the programs of an engine are compiled, and starts it."""
    from vipllava_jax.asking.starting import compile_ahead

    start = compile_ahead(plan.weights, plan.processor, **options)
    model, _ = load_model(plan.weights, plan.processor)
    with count_bar('programs') as progress:
        engine = start(model, progress)
    with engine:
        yield engine


def answer(
    engine: 'Engine', first: 'RowQuestion', pending: 'PendingRows', output: 'Output', size: int | None
) -> None:
    """Writes the lines of the questions as they are answered."""
    from vipllava_jax.batch_files.answering import rounds

    with catch_signals() as signal, pace_bar('rows') as show:
        pace = Pace(engine, pending, output, size, show)
        with closing(rounds(engine, chain([first], pending))) as finished:
            for lines in finished:
                output.write(lines)
                pace.update(lines)
                if number := signal():
                    break
            else:
                return
    said = f'stopped by {Signals(number).name}: the {output.lines:,} lines so far are in {output.path}'
    click.echo(f'vipllava: {printable(said)}; the same command continues', err=True)
    sys.exit(128 + number)


@contextmanager
def telling_what_is_kept(output: 'Output') -> Iterator[None]:
    """If the engine fails, says on stderr that the answers so far are kept.

    The exit code is never 1, which says that all rows have a line.
    """
    from vipllava_jax.cli import user_error

    try:
        yield
    except OSError:  # of writing, which says so itself
        raise
    except Exception as error:
        said = f'the {output.lines:,} lines so far are in {output.path}; the same command continues'
        click.echo(f'vipllava: {printable(said)}', err=True)
        if user_error(error) is not None:
            raise
        traceback.print_exc()
        sys.exit(2)


class Pace:
    """Shows rows and tokens per second, how full the engine's rows are, and the time left."""

    def __init__(
        self,
        engine: 'Engine',
        pending: 'PendingRows',
        output: 'Output',
        size: int | None,
        show: Callable[[int, int | None, str], None],
    ):
        self.engine, self.pending, self.output, self.size, self.show = engine, pending, output, size, show
        self.begin, self.before, self.tokens = time.perf_counter(), output.lines, 0
        self.stats = engine.stats()
        self.full = ''

    def update(self, lines: list[dict[str, Any]]) -> None:
        from vipllava_jax.batch_files.lines import new_tokens

        self.tokens += sum(map(new_tokens, lines))
        seconds = time.perf_counter() - self.begin
        done = self.output.lines
        rate = (done - self.before) / seconds
        pace = f'{rate:.1f} rows/s, {self.tokens / seconds:.0f} tokens/s{self.fullness()}'
        total = self.total()
        if total is not None and rate:
            pace += f', {duration((total - done) / rate)} left'
        self.show(done, total, pace)

    def total(self) -> int | None:
        """The number of rows, estimated from the part of the source that has been read; None if unknown."""
        if not self.size or not self.pending.end:
            return None
        return max(round(self.pending.read * self.size / self.pending.end), self.pending.read)

    def fullness(self) -> str:
        """How full the engine's rows were in the steps since it was last said."""
        now = self.engine.stats()
        if now.steps - self.stats.steps >= 64:
            computed = now.lane_steps - self.stats.lane_steps
            share = (now.row_steps - self.stats.row_steps) / max(computed, 1)
            self.full, self.stats = f', {share:.0%} full', now
        return self.full
