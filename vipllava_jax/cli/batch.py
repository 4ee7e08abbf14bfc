"""`vipllava batch`: answers the rows of a file, or one question about each picture of a folder."""

import secrets
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.batch_merge import merge, said_of
from vipllava_jax.cli.batch_plan import PreparedBatch, open_source, prepare
from vipllava_jax.cli.batch_run import answer_all
from vipllava_jax.cli.engine_options import ENGINE_OPTIONS, engine_options
from vipllava_jax.cli.generation_options import (
    OPTIONS,
    GenerationCommand,
    generation_options,
    pop_settings,
)
from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.mesh import mesh_option
from vipllava_jax.cli.models import (
    fit_option,
    model_option,
    pop_weight_options,
    template_option,
    weight_options,
)
from vipllava_jax.cli.paths import FILE, FOLDER
from vipllava_jax.cli.pictures import mark_option
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.batch_files.run_file import Run

WITHOUT = ('num_beams', 'logprobs')  # which the engine or the format of the answers does not have
GROUPS = {
    'Rows': ('images', 'prompt', 'marks', 'template', 'fit', 'shard'),
    'Output': ('output', 'retry_errors'),
    'Generation': (*(name for name in OPTIONS if name not in WITHOUT), 'others'),
    'Model': ('source', 'dtype', 'quantize', 'adapter', 'mesh'),
    'Engine': ENGINE_OPTIONS,
}


class BatchCommand(GenerationCommand):
    """The command, whose first argument may be `merge`, a command of its own."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args[:1] == ['merge']:
            return merge.make_context(f'{info_name} merge', args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=BatchCommand, groups=GROUPS)
@click.argument('given', metavar='INPUT', type=FILE)
@click.option(
    '-o',
    '--output',
    metavar='OUT.jsonl',
    type=FILE,
    required=True,
    help='Append the answers to this file, and continue what is there.',
)
@click.option(
    '--images',
    metavar='FOLDER',
    type=FOLDER,
    help='The folder of the pictures.  [default: the folder of INPUT]',
)
@click.option(
    '--prompt', metavar='TEXT', help='The question of rows without one, and of pictures in a folder.'
)
@mark_option
@template_option
@fit_option("as in the checkpoint's files, pad for ViP-Bench")
@click.option(
    '--shard',
    metavar='I/N|auto',
    help='Answer part I of N, from 0, which a hash of the ids of the rows selects, and write to '
    'OUT.I-of-N.jsonl: for independent processes on any number of computers. auto and auto/N are those of '
    'vipllava eval.',
)
@click.option(
    '--retry-errors', is_flag=True, help='Answer the rows again whose lines in the output are errors.'
)
@partial(generation_options, without=WITHOUT)
@model_option
@weight_options
@mesh_option
@engine_options
def batch(
    given: str,
    output: str,
    source: str,
    images: str | None,
    shard: str | None,
    retry_errors: bool,
    mesh: Any,
    **options: Any,
) -> None:
    """Answer all rows of INPUT: a JSONL file, a JSON list, a folder of pictures, or - for stdin.

    A row is {"image": "a.jpg", "prompt": "What is this?"}, and may have "id", "marks", "settings" and more;
    rows of ViP-Bench and requests as in OpenAI's batches are recognized. The answers are appended to the
    output as they come. After an interruption of any kind, the same command continues where it stopped. A row
    that cannot be answered gets a line with an error, and the others go on. The exit code is 1 if there are
    such lines.

    \b
    Examples:
      vipllava batch rows.jsonl -o answers.jsonl
      vipllava batch ./photos --prompt "Describe this picture." -o captions.jsonl --max-new-tokens 64
      vipllava batch rows.jsonl -o answers.jsonl --shard 0/2     # and 1/2 on another computer; then
      vipllava batch merge answers.jsonl
    """
    reserve()
    engine = {name: options.pop(name) for name in ENGINE_OPTIONS}
    settings = {'drawn_seed': secrets.randbits(32), **pop_settings(options, as_json=True)}
    weights = pop_weight_options(options)
    found = open_source(given, images, options)
    plan = prepare(source, found, Path(output), shard, weights, mesh, {**options, 'settings': settings})
    run = answer_all(plan, retry_errors, engine)
    sys.exit(report(run, plan))


def report(run: 'Run', plan: PreparedBatch) -> int:
    """Says on stderr what is in the output; returns the exit code."""
    assert run.complete
    message = said_of(run.complete, plan.output)
    if errors := run.complete['errors']:
        message += ': see its lines with "error"; --retry-errors answers these rows again'
    click.echo(f'vipllava: {printable(message)}', err=True)
    return int(bool(errors))
