"""The table and the files that `vipllava eval` writes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.files import check_writable, write_text
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.evaluation.cases import Cases
    from vipllava_jax.evaluation.run import Result


def output_paths(options: dict[str, str | None]) -> dict[str, Path]:
    """The output files by their options; an OSError names one that cannot be written."""
    paths = {name: Path(path) for name, path in options.items() if path}
    for name, path in paths.items():
        if name != '--output':
            check_output_folder(path, paths['--output'])
    return paths


def check_output_folder(path: Path, output: Path) -> None:
    """Raises OSError if a file cannot be written; the folder of --output is created when it is needed."""
    if path.exists() or path.parent != output.parent:
        check_writable(path)


def print_result(result: 'Result') -> None:
    """Prints the table on stdout, and on stderr what was left out or cut off."""
    from vipllava_jax.evaluation.scores import format_table

    for line in result.errors:
        click.echo(printable(f'vipllava: left out: {line}'), err=True)
    if result.left_out > len(result.errors):
        click.echo(f'vipllava: {result.left_out} questions were left out in total', err=True)
    if result.cut_off:
        click.echo(f'vipllava: {result.cut_off} answers were cut off: see --max-new-tokens', err=True)
    if result.scores:
        click.echo(format_table(result.scores))


def write_result(
    result: 'Result', cases: 'Cases', settings: dict[str, Any], outputs: dict[str, Path]
) -> None:
    """Writes the files of --json and --vip-bench."""
    from vipllava_jax.evaluation.cases import VIP_BENCH
    from vipllava_jax.evaluation.run import write_vip_bench

    if '--json' in outputs:
        write_text(outputs['--json'], json.dumps(as_json(result, settings), indent=2) + '\n')
    if any(case.task is VIP_BENCH for case in cases.cases):
        path = outputs['--vip-bench']
        write_vip_bench(path, result)
        click.echo(f'{printable(str(path), 4096)}: for the evaluator of ViP-Bench')


def as_json(result: 'Result', settings: dict[str, Any]) -> dict[str, Any]:
    """The table and the settings as a JSON object."""
    scores = []
    for score in result.scores:
        low, high = score.interval
        scores.append({**score._asdict(), 'accuracy': score.accuracy, 'low': low, 'high': high})
    counts = {'answers': len(result.answers), 'left_out': result.left_out, 'cut_off': result.cut_off}
    return {'settings': settings, **counts, 'scores': scores}
