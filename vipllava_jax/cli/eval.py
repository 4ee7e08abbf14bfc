"""`vipllava eval`: asks questions with known answers in batches, and counts the right ones."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.engine_option import engine_option, reserve_for_engine
from vipllava_jax.cli.engines import LoadedOnce
from vipllava_jax.cli.eval_outputs import check_output_folder, output_paths, print_result, write_result
from vipllava_jax.cli.eval_parts import Division, count_all, merge, pop_division, shard_options
from vipllava_jax.cli.eval_plan import PreparedEvaluation, load_params, prepare
from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.mesh import mesh_option
from vipllava_jax.cli.models import (
    fit_option,
    model_option,
    pop_weight_options,
    template_option,
    weight_options,
)
from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FILE, FOLDER
from vipllava_jax.cli.pods import check_same, distributed_options, joined_pod
from vipllava_jax.cli.rows import report_broken_rows
from vipllava_jax.cli.waiting import count_bar
from vipllava_jax.mesh_text import mesh_text
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.evaluation.cases import Cases
    from vipllava_jax.evaluation.run import Result


@click.command()
@model_option
@click.option(
    '--data',
    metavar='FILE',
    type=FILE,
    multiple=True,
    required=True,
    help='A file of questions: JSONL or a JSON list. Files of ViP-Bench, Visual7W, PointQA and VCR are '
    'recognized by their rows. May be repeated.',
)
@click.option(
    '--images',
    metavar='FOLDER',
    type=FOLDER,
    help='The folder of the pictures.  [default: the folder of each file]',
)
@click.option(
    '--by',
    metavar='FIELD',
    multiple=True,
    help='Also report the accuracy for each value of this field. May be repeated.',
)
@click.option(
    '--together',
    metavar='FIELD',
    multiple=True,
    help='Also count all rows with the same value of this field as one question, right if all answers are. '
    'May be repeated.',
)
@click.option(
    '--output',
    metavar='FILE',
    type=FILE,
    help='Append the answers of each batch to this file.  [default: NAME.answers.jsonl in the working '
    'directory, with the name of the first --data]',
)
@click.option('--restart', is_flag=True, help='Empty --output first, and ask all questions again.')
@click.option(
    '--json', 'json_file', metavar='FILE', type=FILE, help='Write the table and the settings to this file.'
)
@click.option(
    '--vip-bench',
    metavar='FILE',
    type=FILE,
    help="Write the answers to this file for ViP-Bench's evaluator.  [default: --output with "
    'the suffix .vip-bench.json]',
)
@template_option
@fit_option("as the data set requires, or as in the checkpoint's files")
@click.option(
    '--max-new-tokens',
    metavar='N',
    type=WholeNumber(1),
    help='The maximum number of tokens of an answer.  [default: 128; for ViP-Bench 1024]',
)
@click.option(
    '--choose',
    is_flag=True,
    help='Also choose the likeliest of the options of each question, as for Visual7W and VCR, and count how '
    'often it is right.',
)
@click.option(
    '--batch',
    metavar='N',
    type=WholeNumber(1, 2**16),
    default=16,
    show_default=True,
    help='The number of questions that are answered together, unless the engine answers.',
)
@engine_option('questions')
@weight_options
@mesh_option
@shard_options
@distributed_options
@click.option('--skip-broken', is_flag=True, help='Leave out broken rows instead of stopping.')
def eval(
    source: str,
    data: tuple[str, ...],
    images: str | None,
    output: str | None,
    json_file: str | None,
    vip_bench: str | None,
    restart: bool,
    engine: bool | None,
    **options: Any,
) -> None:
    """Ask a model questions whose answers are known, and count how many it gets right.

    An answer is right if it equals one of the accepted answers, ignoring case. The command prints accuracies
    with 95 % intervals. After an interruption of any kind, the same command resumes where it stopped.

    \b
    Examples:
      vipllava eval --data held-out.jsonl --by type --by shape
      vipllava eval --data v7w-test.json --images ./dataset --json visual7w.json
      vipllava eval --data bbox/questions.jsonl --images bbox/images --output vip-7b-bbox.jsonl
    """
    output = output or f'{Path(data[0]).stem}.answers.jsonl'
    outputs = output_paths({'--output': output, '--json': json_file, '--vip-bench': vip_bench})
    weights = pop_weight_options(options)
    division = pop_division(options, outputs['--output'])
    mesh = options.pop('mesh')
    if mesh is not None:
        reserve()
    with joined_pod(options):
        from vipllava_jax import pods
        from vipllava_jax.evaluation.engine_choice import check_engine

        shown_mesh = mesh and (mesh if mesh == 'auto' else mesh_text(mesh))
        check_same({'mesh': shown_mesh, 'engine': engine, **options})
        check_same({**vars(weights), 'adapter': weights.adapter and 'given'})  # its folder may differ
        with pods.together():
            check_mesh(mesh)
            check_engine(bool(engine), pods.process_count() > 1, options['choose'])
            cases = find_cases(data, images, outputs, options)
            outputs['--output'] = division.file
            reserve_for_engine(engine, len(cases.cases))
            plan = prepare(source, cases, outputs, weights, mesh, division, options)
        result = answer(plan, division, restart, engine)
        report(result, plan, cases, division, outputs)


def report(
    result: 'Result', plan: PreparedEvaluation, cases: 'Cases', division: Division, outputs: dict[str, Path]
) -> None:
    """Prints the table and writes the files, of all parts if they are complete."""
    from vipllava_jax import pods

    total: Result | None = result
    if division.shard:
        total = count_all(plan.group, division, plan.settings(True), len(result.answers))
    with pods.together():
        if pods.is_first():
            print_result(total or result)
            if total:
                write_result(total, cases, plan.settings(division.shard is not None), outputs)


def check_mesh(mesh: Any) -> None:
    """Raises ValueError if processes have joined that would all do the same."""
    from vipllava_jax import pods

    if (count := pods.process_count()) > 1 and mesh is None:
        raise ValueError(
            f'{count} processes have joined, but without --mesh each would answer all questions alone: give '
            f'--mesh auto, or let them work independently with --shard I/{count}'
        )


def find_cases(
    data: Sequence[str], images: str | None, outputs: dict[str, Path], options: dict[str, Any]
) -> 'Cases':
    """The cases in the files; adds the default of --vip-bench to the outputs if ViP-Bench is among them.

    Raises ValueError for broken rows, and for an output that is also read.
    """
    from vipllava_jax.evaluation.cases import VIP_BENCH, read_cases
    from vipllava_jax.evaluation.outputs import check_outputs

    check_outputs(outputs, map(Path, data))
    fields = {name: options.pop(name) for name in ('by', 'together')}
    with report_broken_rows():
        cases = read_cases(data, images, **fields, skip_broken=options['skip_broken'])
    if '--vip-bench' not in outputs and any(case.task is VIP_BENCH for case in cases.cases):
        path = outputs['--output'].with_suffix('.vip-bench.json')
        check_output_folder(path, outputs['--output'])
        outputs['--vip-bench'] = path
    check_outputs(outputs, (*map(Path, data), *(path for case in cases.cases for path in case.images)))
    return cases


def answer(plan: PreparedEvaluation, division: Division, restart: bool, engine: bool | None) -> 'Result':
    """Asks what has no answer yet, or puts the answers of all parts together; returns the result."""
    from vipllava_jax import pods
    from vipllava_jax.evaluation.joined import Stopped
    from vipllava_jax.evaluation.parts import part_settings
    from vipllava_jax.evaluation.run import run

    if division.merge:
        return merge(plan.batches, division, plan.settings(True), plan.settings(False), restart)
    settings = plan.settings(division.shard is not None)
    if division.shard:
        settings = part_settings(settings, division.shard)
    joined = pods.process_count() > 1
    choice = False if joined or plan.batches.choose else engine
    model = LoadedOnce(plan.weights, plan.batches.processor)
    with count_bar('answers') as progress:
        try:
            return run(
                plan.batches,
                partial(load_params, plan, model),
                division.file,
                settings,
                restart=restart,
                progress=progress,
                joined=joined,
                engine=partial(model.engine, choice),
            )
        except Stopped as stopped:
            signal = stopped.signal
    said = f'stopped by {Signals(signal).name}: the answers so far are in {division.file}'
    click.echo(f'vipllava: {printable(said)}; the same command resumes', err=True)
    sys.exit(128 + signal)
