"""`vipllava eval --shard` and `--merge`: a part of the questions, and putting the parts together."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.messages import printable
from vipllava_jax.row_shards import MAX_SHARDS, Shard, check_parts, parse_shard, shards

if TYPE_CHECKING:
    from vipllava_jax.evaluation.batches import CaseBatches
    from vipllava_jax.evaluation.run import Result

F = TypeVar('F', bound=Callable[..., Any])
JOINING = ('coordinator', 'process_count', 'process_index')  # options of processes that join


@dataclass(frozen=True)
class Division:
    """How the questions are divided among independent processes."""

    output: Path  # of the whole; the parts lie next to it
    shard: Shard | None = None  # the part of this process
    merge: int | None = None  # the number of parts to put together

    @property
    def file(self) -> Path:
        """The file of answers that this process writes."""
        return self.shard.file(self.output) if self.shard else self.output


def shard_options(command: F) -> F:
    """The options --shard and --merge."""
    command = click.option(
        '--merge',
        metavar='N',
        type=WholeNumber(1, MAX_SHARDS),
        help='Ask nothing: put the N part files of --shard together in --output, and count all answers.',
    )(command)
    return click.option(
        '--shard',
        metavar='I/N|auto',
        help='Ask part I of N, from 0, which a hash of the ids of the rows selects, and write to '
        'OUTPUT.I-of-N.jsonl: for independent processes on any number of computers. auto takes both numbers '
        'from a Slurm array or SkyPilot, auto/N the index from these or a Kubernetes Indexed Job.',
    )(command)


def pop_division(options: dict[str, Any], output: Path) -> Division:
    """Removes the values of `shard_options` from the options; processes with parts do not join.

    Raises ValueError for invalid values, and if there are parts for another number of processes.
    """
    shard, merge = options.pop('shard'), options.pop('merge')
    if shard is None and merge is None:
        return Division(output)
    if shard is not None and merge is not None:
        raise click.UsageError('--shard asks, and --merge puts together what was answered: give one of them')
    joining = ['--distributed'] if options['distributed'] == 'on' else []
    joining += [f'--{name.replace("_", "-")}' for name in JOINING if options[name] is not None]
    if joining:
        name = '--merge' if shard is None else '--shard'
        raise click.UsageError(
            f'{name} is for independent processes, which do not join: leave out {", ".join(joining)}'
        )
    options['distributed'] = 'off'
    division = Division(output, None if shard is None else parse_shard(shard, os.environ), merge)
    count = division.shard.count if division.shard else division.merge
    assert count
    check_parts(output, count)
    return division


def merge(
    batches: 'CaseBatches',
    division: Division,
    part_settings: dict[str, Any],
    settings: dict[str, Any],
    restart: bool,
) -> 'Result':
    """Puts the answers of all parts together in one file, and counts; ValueError if some are missing."""
    from vipllava_jax.evaluation.journal import open_journal
    from vipllava_jax.evaluation.parts import read_parts
    from vipllava_jax.evaluation.run import make_result

    assert division.merge
    records, errors = read_parts(batches, division.output, division.merge, part_settings)
    with open_journal(division.output, settings, restart, len(batches.cases.cases)) as journal:
        journal.append(records[n] for n in sorted(records))
        message = f'{len(journal.records)} answers of {division.merge} parts are in {division.output}'
        click.echo(f'vipllava: {printable(message)}', err=True)
        return make_result(batches, journal.records, errors)


def count_all(
    group: Callable[[], 'CaseBatches'], division: Division, settings: dict[str, Any], answered: int
) -> 'Result | None':
    """The result of all parts if they are complete, else None; says on stderr which it is."""
    from vipllava_jax.evaluation.parts import Incomplete, read_parts
    from vipllava_jax.evaluation.run import make_result

    assert division.shard
    count = division.shard.count
    message = f'part {division.shard}: {answered} answers in {division.file}'
    missing = [shard for shard in shards(count) if not shard.file(division.output).exists()]
    result = None
    if missing:
        message += f'; {len(missing)} of {count} parts have no file here yet'
    else:
        batches = group()
        try:
            records, errors = read_parts(batches, division.output, count, settings)
        except Incomplete as incomplete:
            message += f'; {incomplete}'
        else:
            message += f'; all {count} parts are complete'
            result = make_result(batches, records, errors)
    if result is None:
        message += f'. The last part to end counts all, and so does --merge {count}'
    click.echo(f'vipllava: {printable(message)}', err=True)
    return result
