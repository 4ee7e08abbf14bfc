"""`vipllava eval`: asks questions with known answers in batches, and counts the right ones."""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vipllava_jax.cli.eval_outputs import check_output_folder, output_paths, print_result, write_result
from vipllava_jax.cli.models import (
    compile_in_background,
    fit_option,
    load_model,
    model_option,
    pop_weight_options,
    template_option,
    weight_dtypes,
    weight_options,
)
from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FILE, FOLDER
from vipllava_jax.cli.rows import report_broken_rows
from vipllava_jax.cli.waiting import count_bar
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.evaluation.batches import CaseBatch, CaseBatches
    from vipllava_jax.evaluation.cases import Cases
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Source
    from vipllava_jax.model.vipllava import Params
    from vipllava_jax.weight_options import WeightOptions


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
    '--batch',
    metavar='N',
    type=WholeNumber(1, 2**16),
    default=16,
    show_default=True,
    help='The number of questions that are answered together.',
)
@weight_options
@click.option('--skip-broken', is_flag=True, help='Leave out broken rows instead of stopping.')
def eval(
    source: str,
    data: tuple[str, ...],
    images: str | None,
    output: str | None,
    json_file: str | None,
    vip_bench: str | None,
    restart: bool,
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
    cases = find_cases(data, images, outputs, options)
    plan = prepare(source, cases, outputs, weights, options)
    from vipllava_jax.evaluation.run import run

    with count_bar('answers') as progress:
        result = run(
            plan.batches,
            partial(load_params, plan),
            outputs['--output'],
            plan.settings,
            restart=restart,
            progress=progress,
        )
    print_result(result)
    write_result(result, cases, plan.settings, outputs)


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


class PreparedEvaluation(NamedTuple):
    """An evaluation that is ready to run: everything but the weights."""

    processor: 'Processor'
    weights: 'Source'
    shapes: dict[str, Any]  # the shapes of the weights
    batches: 'CaseBatches'
    settings: dict[str, Any]  # the settings on which answers depend, for the file of answers


def prepare(
    source: str,
    cases: 'Cases',
    outputs: dict[str, Path],
    weight_options: 'WeightOptions',
    options: dict[str, Any],
) -> PreparedEvaluation:
    """Locates the checkpoint, and checks everything that can be checked without reading the weights."""
    from vipllava_jax import loading
    from vipllava_jax.evaluation.batches import group_cases
    from vipllava_jax.evaluation.outputs import check_outputs
    from vipllava_jax.evaluation.run import answer_settings
    from vipllava_jax.inputs.processor import Processor

    folder = loading.locate(source)
    adapter = weight_options.adapter
    folders = [folder, *([Path(adapter)] if adapter else [])]
    check_outputs(outputs, (), folders)
    processor = Processor.load(folder)
    weights = loading.open(folder, weight_options)
    shapes = weights.shapes()
    with report_broken_rows():
        batches = group_cases(cases, processor, weights.cfg, **options, warn=OncePerSubject())
    settings = {
        'model': str(folder.resolve()),
        'adapter': adapter and str(Path(adapter).resolve()),
        **weight_dtypes(shapes),
        **answer_settings(cases, options['template'], options['fit'], options['max_new_tokens']),
        'weights': fingerprint(folders),
    }
    return PreparedEvaluation(processor, weights, shapes, batches, settings)


def load_params(plan: PreparedEvaluation, first: 'CaseBatch') -> 'Params':
    """Loads the weights while the programs for the first batch are compiled."""
    batch = plan.batches.prepare(first).batch
    settings = plan.batches.settings(first.max_new_tokens)
    wait = None
    if batch is not None:
        wait = compile_in_background(plan.shapes, batch, plan.batches.cfg, settings, plan.processor)
    model, _ = load_model(plan.weights, plan.processor)
    if wait is not None:
        with contextlib.suppress(Exception):  # decoding raises the same error again
            wait()
    return model.params


class OncePerSubject:
    """Shows messages on stderr, one for each subject."""

    def __init__(self) -> None:
        self.subjects: set[str] = set()

    def __call__(self, subject: str, message: str) -> None:
        if subject not in self.subjects:
            self.subjects.add(subject)
            click.echo(f'vipllava: {printable(message)}', err=True)


def fingerprint(folders: Iterable[Path]) -> str:
    """A hash that changes whenever a file in one of the folders is written."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                status = path.stat()
                name = path.relative_to(folder)
                digest.update(f'{name} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return digest.hexdigest()
