"""`vipllava doctor`: checks that this computer can run the model, and says what to do where it cannot."""

import dataclasses
import itertools
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vipllava_jax import compilation
from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FOLDER

if TYPE_CHECKING:
    from vipllava_jax.doctor.check import Check

WIDTH = 18  # columns of a name
Place = tuple[str | None, int | None, int | None]  # the coordinator, the number of processes, the index


@click.command()
@click.option(
    '--model', metavar='FOLDER', type=FOLDER, help='Also check that the files of a model can be read.'
)
@click.option(
    '--output', metavar='FOLDER', type=FOLDER, help='Also check that results can be written to this folder.'
)
@click.option(
    '--coordinator',
    metavar='HOST:PORT',
    help='The address of process 0 of a job on several hosts.  [default: JAX_COORDINATOR_ADDRESS, or the '
    "cluster's]",
)
@click.option('--process-count', metavar='N', type=WholeNumber(1, 1 << 20), help='The number of processes.')
@click.option(
    '--process-index', metavar='I', type=WholeNumber(0, 1 << 20), help='The index of this process, from 0.'
)
@click.option(
    '--join',
    is_flag=True,
    help='Join the processes of the job, which must all run this command, and add over all their devices.',
)
@click.option(
    '--time-limit',
    metavar='S',
    type=WholeNumber(1, 3600),
    default=120,
    show_default=True,
    help='The seconds within which each check must answer.',
)
@click.option('--json', 'as_json', is_flag=True, help='Print one JSON object instead of text.')
def doctor(
    model: str | None,
    output: str | None,
    coordinator: str | None,
    process_count: int | None,
    process_index: int | None,
    join: bool,
    time_limit: int,
    as_json: bool,
) -> None:
    """Check software, devices, storage and network; each line is ok or says what to do.

    Every device multiplies matrices for a second, and all add their results; both are compared with the right
    results. Nothing stays on the devices or the disk. The exit code is 1 if a check failed.

    \b
    Examples:
      vipllava doctor
      vipllava doctor --model ./vip-llava-7b --output ./run
      vipllava doctor --coordinator 10.0.0.1:8476 --process-count 4 --process-index 1
      srun vipllava doctor --join
    """
    place = coordinator, process_count, process_index
    checks: list[Check] = []
    for check in itertools.chain(_local_checks(model, output, time_limit), _network(place, join, time_limit)):
        checks.append(check)
        show(check, as_json)
    healthy = all(check.status != 'FAIL' for check in checks)
    if as_json:
        click.echo(json.dumps({'ok': healthy, 'checks': [dataclasses.asdict(check) for check in checks]}))
    sys.exit(0 if healthy else 1)


def _local_checks(model: str | None, output: str | None, seconds: float) -> 'Iterator[Check]':
    """The checks of this computer, in order."""
    from vipllava_jax.doctor import hardware, software, storage
    from vipllava_jax.doctor.check import skipped

    yield software.check_versions()
    yield from software.check_accelerators()
    yield from hardware.check_devices(seconds)
    elsewhere = 'choose another one with --compilation-cache FOLDER, or off'
    if cache := os.environ.get(compilation.FOLDER):
        yield storage.check_writable('compiled programs', Path(cache), seconds, elsewhere)
    else:
        yield skipped('compiled programs', 'are not kept: every start compiles again')
    if model is not None:
        yield _check_model(model, seconds)
    if output is not None:
        yield storage.check_writable('output', Path(output), seconds, 'give another --output')


def _network(place: Place, join: bool, seconds: float) -> 'Iterator[Check]':
    """The checks of the way to other hosts."""
    from vipllava_jax.doctor import network

    if join:
        yield from network.check_joining(*place, seconds)
    else:
        yield network.check_coordinator(*place, seconds)


def _check_model(model: str, seconds: float) -> 'Check':
    """Whether the files of a model can be read; a name on the Hub is not downloaded."""
    from vipllava_jax.doctor.check import failed
    from vipllava_jax.doctor.storage import check_readable
    from vipllava_jax.loading import DEMO, bundled

    folder = bundled() if model == DEMO else Path(model).expanduser()
    if not folder.is_dir():
        return failed('model', f'{model}: no such folder', 'give the folder of a checkpoint on this computer')
    return check_readable('model', folder, seconds)


def show(check: 'Check', as_json: bool) -> None:
    """Shows a check, wrapped to the terminal; with --json nothing."""
    if as_json:
        return
    columns = max(60, min(shutil.get_terminal_size().columns, 110))
    indent = ' ' * (WIDTH + 6)
    head = f'{check.status:<5} {check.name:<{WIDTH}}'
    for first, text in ((head, check.found), (indent, check.advice and f'→ {check.advice}')):
        if text:
            lines = textwrap.wrap(
                text, columns, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
            )
            click.echo('\n'.join(lines))
