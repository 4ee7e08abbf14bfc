"""`vipllava eval`: asks questions with known answers in batches, and counts the right ones."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.models import (
    compiling,
    fit_option,
    load,
    model_option,
    template_option,
    types,
    weight_options,
)
from vipllava_jax.cli.numbers import Whole
from vipllava_jax.cli.rows import a_line_each
from vipllava_jax.cli.waiting import counting
from vipllava_jax.files import check_writable, write_text
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.evaluation.answering import Asked
    from vipllava_jax.evaluation.run import Result


@click.command()
@model_option
@click.option(
    '--data',
    metavar='FILE',
    multiple=True,
    required=True,
    help='Questions: JSONL or a JSON list; ViP-Bench, Visual7W, PointQA and VCR are known by their rows. '
    'May be repeated.',
)
@click.option('--images', metavar='FOLDER', help='Where the pictures are.  [default: beside each file]')
@click.option(
    '--by', metavar='FIELD', multiple=True, help='Count by the values of this field, too. Repeatable.'
)
@click.option(
    '--together',
    metavar='FIELD',
    multiple=True,
    help='Count rows whose FIELD is the same as one, right if all of them are, too. Repeatable.',
)
@click.option(
    '--output',
    metavar='FILE',
    help='Where answers are added as they come.  [default: NAME.answers.jsonl here, of the first --data]',
)
@click.option('--restart', is_flag=True, help='Ask all questions again, and empty --output first.')
@click.option('--json', 'table_file', metavar='FILE', help='The table, for machines.')
@click.option(
    '--vip-bench',
    metavar='FILE',
    help="Answers for ViP-Bench's evaluator.  [default: as --output, ending in .vip-bench.json]",
)
@template_option
@fit_option("the data set's way, or the checkpoint's")
@click.option(
    '--max-new-tokens',
    metavar='N',
    type=Whole(1),
    help='The longest answer.  [default: 128; of ViP-Bench 1024]',
)
@click.option('--batch', metavar='N', type=Whole(1, 2**16), default=16, show_default=True)
@weight_options
@click.option('--skip-broken', is_flag=True, help='Leave out rows that are broken, instead of stopping.')
def eval(
    source: str,
    data: tuple[str, ...],
    images: str | None,
    by: tuple[str, ...],
    together: tuple[str, ...],
    output: str | None,
    restart: bool,
    table_file: str | None,
    vip_bench: str | None,
    template: str,
    fit: Any,
    max_new_tokens: int | None,
    batch: int,
    dtype: str | None,
    quantize: str | None,
    adapter: str | None,
    skip_broken: bool,
) -> None:
    """Ask a model questions whose answers are known, and count how many it gets right.

    An answer is right if it equals one of the accepted answers, ignoring case. It prints accuracies with
    95 % intervals. After an interruption of any kind, the same command resumes where it stopped.

    \b
    Examples:
      vipllava eval --data held-out.jsonl --by type --by shape
      vipllava eval --data v7w-test.json --images ./dataset --json visual7w.json
      vipllava eval --data bbox/questions.jsonl --images bbox/images --output vip-7b-bbox.jsonl
    """
    output = output or f'{Path(data[0]).stem}.answers.jsonl'
    outputs = named(output, table_file, vip_bench)
    from vipllava_jax.evaluation import cases
    from vipllava_jax.evaluation.outputs import check_outputs

    check_outputs(outputs, map(Path, data))
    with a_line_each():
        found = cases.read(data, images, by=by, together=together, skip_broken=skip_broken)
    of_vip_bench = any(case.task is cases.VIP_BENCH for case in found.cases)
    if of_vip_bench and not vip_bench:
        vip_bench = str(Path(output).with_suffix('.vip-bench.json'))
        outputs = named(output, table_file, vip_bench)
    check_outputs(outputs, (*map(Path, data), *(path for case in found.cases for path in case.images)))
    from vipllava_jax.evaluation import run
    from vipllava_jax.evaluation.answering import questions
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import WeightOptions, locate
    from vipllava_jax.loading import open as open_weights

    folder = locate(source)
    check_outputs(outputs, (), [folder, *([Path(adapter)] if adapter else [])])
    processor = Processor.load(folder)
    weights = open_weights(folder, WeightOptions(dtype=dtype, quantize=quantize, adapter=adapter))
    shapes, cfg = weights.shapes(), weights.cfg
    how: dict[str, Any] = dict(template=template, fit=fit, max_new_tokens=max_new_tokens)
    with a_line_each():
        asked = questions(found, processor, cfg, batch=batch, **how, skip_broken=skip_broken, note=Notes())
    settings = {
        'model': str(folder.resolve()),
        'adapter': adapter and str(Path(adapter).resolve()),
        **types(shapes),
        **run.identity(found, **how),
        'weights': fingerprint(folder, *([adapter] if adapter else [])),
    }

    def loaded(first: 'Asked') -> Any:
        batch = asked.make(first).batch
        waited = compiling(shapes, batch, cfg, asked.settings(first.longest)) if batch else lambda: None
        model, _ = load(weights, processor)
        with contextlib.suppress(Exception):  # decoding raises the same error again
            waited()
        return model.params

    with counting('answers') as progress:
        result = run.run(asked, loaded, output, settings, restart=restart, progress=progress)
    show(result)
    if table_file:
        write_text(Path(table_file), json.dumps(as_json(result, settings), indent=2) + '\n')
    if of_vip_bench and vip_bench:
        run.write_vip_bench(vip_bench, result)
        click.echo(f'{printable(vip_bench, 4096)}: for the evaluator of ViP-Bench')


def named(output: str, table_file: str | None, vip_bench: str | None) -> dict[str, Path]:
    """The output files by their options; an OSError names one that cannot be written."""
    for place in (table_file, vip_bench):
        # the folder of --output is created if it does not exist
        if place and (Path(place).exists() or Path(place).parent != Path(output).parent):
            check_writable(Path(place))
    given = {'--output': output, '--json': table_file, '--vip-bench': vip_bench}
    return {name: Path(place) for name, place in given.items() if place}


class Notes:
    """Shows messages on stderr, one for each subject."""

    def __init__(self) -> None:
        self.subjects: set[str] = set()

    def __call__(self, subject: str, message: str) -> None:
        if subject not in self.subjects:
            self.subjects.add(subject)
            click.echo(f'vipllava: {printable(message)}', err=True)


def show(result: 'Result') -> None:
    """Prints the table on stdout, and on stderr what was left out or cut off."""
    from vipllava_jax.evaluation.scores import table

    for line in result.broken:
        click.echo(printable(f'vipllava: left out: {line}'), err=True)
    if result.left_out > len(result.broken):
        click.echo(f'vipllava: {result.left_out} are left out in all', err=True)
    if result.cut:
        click.echo(f'vipllava: {result.cut} answers were cut off: see --max-new-tokens', err=True)
    if result.scores:
        click.echo(table(result.scores))


def as_json(result: 'Result', settings: dict[str, Any]) -> dict[str, Any]:
    """The table and the settings as a JSON object."""
    scores = []
    for score in result.scores:
        low, high = score.interval
        scores.append({**score._asdict(), 'accuracy': score.accuracy, 'low': low, 'high': high})
    counts = {'answers': len(result.answers), 'left_out': result.left_out, 'cut_off': result.cut}
    return {'settings': settings, **counts, 'scores': scores}


def fingerprint(*folders: str | Path) -> str:
    """A hash that changes whenever a file in one of the folders is written."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file():
                found = path.stat()
                digest.update(f'{path.relative_to(folder)} {found.st_size} {found.st_mtime_ns}\n'.encode())
    return digest.hexdigest()
