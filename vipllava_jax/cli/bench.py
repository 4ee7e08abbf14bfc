"""`vipllava bench`: measures the speed of each part of the model, and compares it to the device's limits."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FILE_PATH, FOLDER
from vipllava_jax.evaluation.outputs import check_outputs
from vipllava_jax.files import check_writable
from vipllava_jax.signals import raising_interrupts, temporary_folder
from vipllava_jax.weight_options import FLOATS, QUANTIZED

if TYPE_CHECKING:
    from vipllava_jax.benchmark.subject import Subject
    from vipllava_jax.benchmark.timing import Line, Result
    from vipllava_jax.ceilings import Ceilings
    from vipllava_jax.config import Config

WHAT = ('compile', 'vision', 'prefill', 'first-token', 'decode', 'generate', 'load', 'convert')
SAME_WEIGHTS = '--peer: transformers would be given the same weights, and has none such'


class Several(click.ParamType):
    """An option's value of several numbers or names, separated by commas."""

    name = 'several'

    def __init__(self, among: Sequence[str] = ()):
        self.among = among

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(',')]
        if self.among:
            if odd := [part for part in parts if part not in self.among]:
                self.fail(f'{odd[0]!r} is not one of {", ".join(self.among)}', param, ctx)
            return tuple(parts)
        if not all(re.fullmatch('0*[1-9][0-9]{0,6}', part, re.ASCII) for part in parts):
            self.fail(f'{value[:80]!r} is not a list of numbers from 1 to 9999999 such as 1,8', param, ctx)
        return tuple(sorted({int(part) for part in parts}))


@click.command()
@click.option(
    '--model',
    'source',
    metavar='M',
    type=FOLDER,
    help='A folder, PyTorch or converted, a name on the Hub, or demo.',
)
@click.option(
    '--preset',
    type=click.Choice(('7b', '13b', 'tiny')),
    help='Random weights of this size instead.  [default: 7b, on a CPU tiny]',
)
@click.option('--what', metavar='A,B,…', type=Several(WHAT), help=f'Only these of {", ".join(WHAT)}.')
@click.option('--batch', 'batches', metavar='N,…', type=Several(), help='[default: 1,8,32,128, on a CPU 1,8]')
@click.option(
    '--context', 'contexts', metavar='N,…', type=Several(), help='[default: 704,1500, on a CPU 704]'
)
@click.option('--repeats', metavar='N', type=WholeNumber(3, 10_000), default=10, show_default=True)
@click.option(
    '--dtype',
    type=click.Choice(FLOATS),
    help="[default: the checkpoint's; of a preset bfloat16, on a CPU float32]",
)
@click.option('--quantize', type=click.Choice(QUANTIZED), help="Quantize the decoder's large weights.")
@click.option('--attention', type=click.Choice(('xla', 'cudnn')), help='[default: cudnn where it can]')
@click.option(
    '--fuse/--no-fuse', default=None, help='Join weights that read the same input.  [default: on a GPU]'
)
@click.option('--peer', type=click.Choice(('transformers',)), help='Measure this too, in turns with ours.')
@click.option('--json', 'json_file', metavar='FILE', type=FILE_PATH, help='Write all samples.')
@click.option('--plot', metavar='FILE.png', type=FILE_PATH, help='Draw a roofline plot.')
def bench(
    source: str | None,
    preset: str | None,
    what: tuple[str, ...] | None,
    batches: tuple[int, ...] | None,
    contexts: tuple[int, ...] | None,
    repeats: int,
    dtype: str | None,
    quantize: str | None,
    attention: Any,
    fuse: bool | None,
    peer: str | None,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Measure how fast each part of the model runs on this device.

    Every line is timed after a warm-up and reported as the median of its repeats, with the quartiles and the
    percentage of the floor: the time that the fewest bytes and operations would take at the rates of a
    copy and a matrix product measured in the same run. Loading, converting and compiling are repeated at
    most three times; compiling without a cache runs once. Ctrl-C prints the results so far.

    \b
    Examples:
      vipllava bench
      vipllava bench --model ./vip-llava-7b --what decode,prefill --batch 1,8 --json speed.json
      vipllava bench --preset 7b --peer transformers --batch 1 --context 704 --plot roofline.png
    """
    outputs = {name: path for name, path in (('--json', json_file), ('--plot', plot)) if path}
    check(source, preset, peer, quantize, outputs)
    reserve(shared=peer is not None)
    from vipllava_jax import ceilings
    from vipllava_jax.benchmark import plan, storage
    from vipllava_jax.benchmark.measure import compilation_cache

    with compilation_cache(), temporary_folder('vipllava-bench-') as place:
        preset = preset or (None if source else usual('preset'))
        batches, contexts = batches or usual('batch'), contexts or usual('context')
        folder, cfg = located(source, preset)
        check_outputs(outputs, (), [folder] if folder else [])
        plan.check(cfg, contexts)
        subject = prepare(folder, preset, dtype, quantize, attention, fuse)
        sides = players(subject, peer)
        tell('the device: copies and matrix products')
        rates = ceilings.measure(subject.dtype)
        planned = [
            *plan.lines(sides, subject.costs, what or WHAT, batches, contexts),
            *storage.lines(storage.Folders(subject, folder, Path(place), quantize), what or WHAT),
        ]
        notes = {**about(subject), 'model': source or preset, 'repeats': repeats}
        results: list[Result] = []
        try:
            with raising_interrupts():
                for result in measured(planned, repeats, rates):
                    results.append(result)
                    for side in sides.values():
                        side.release()
                    keep(results, rates, notes, json_file)
        finally:  # also when interrupted: the results so far
            show(results, rates, notes, plot)
    if any(side.fault and not side.full for result in results for side in result.sides.values()):
        sys.exit(1)


def check(
    source: str | None,
    preset: str | None,
    peer: str | None,
    quantize: str | None,
    outputs: dict[str, Path],
) -> None:
    """Raises ValueError for options that would otherwise fail only after the measurements."""
    if source and preset:
        raise ValueError('--model and --preset: give one of them')
    for path in outputs.values():
        check_writable(path)
    check_outputs(outputs, ())
    plot = outputs.get('--plot')
    if plot and plot.suffix != '.png':
        raise ValueError(f'--plot {plot}: end the name in .png')
    if plot and not importlib.util.find_spec('matplotlib'):
        raise ValueError("--plot needs matplotlib: pip install 'vipllava-jax[bench]'")
    missing = [name for name in ('torch', 'transformers') if not importlib.util.find_spec(name)]
    if peer and quantize:
        raise ValueError(SAME_WEIGHTS)
    if peer and missing:
        raise ValueError(f'--peer transformers needs {" and ".join(missing)}: pip install torch transformers')


def located(source: str | None, preset: str | None) -> 'tuple[Path | None, Config]':
    """The folder of the model to measure, or None for random weights, and its config."""
    from vipllava_jax import loading
    from vipllava_jax.benchmark.subject import PRESETS

    if source is None:
        return None, PRESETS[preset or 'tiny']
    folder = loading.locate(source)
    return folder, loading.open(folder).cfg


def prepare(
    folder: 'Path | None',
    preset: str | None,
    dtype: str | None,
    quantize: str | None,
    attention: Any,
    fuse: bool | None,
) -> 'Subject':
    """The model to measure, with the weights of a folder or random ones."""
    import jax

    from vipllava_jax import loading, placement
    from vipllava_jax.benchmark.subject import PRESETS, Subject, random_params, silent

    if folder is None:
        tell(f'random weights for {preset}')
        cfg = PRESETS[preset or 'tiny']
        params = placement.place(random_params(cfg, dtype or usual('dtype'), quantize), cfg, fuse=fuse)
    else:
        params, cfg, *_ = loading.load(folder, dtype=dtype, quantize=quantize, fuse=fuse)
    return Subject(jax.block_until_ready(params), silent(cfg, attention))


def usual(option: str) -> Any:
    """The default of an option; on a CPU, one with which the measurement takes at most a minute."""
    import jax

    large: dict[str, Any] = dict(preset='7b', batch=(1, 8, 32, 128), context=(704, 1500), dtype='bfloat16')
    small: dict[str, Any] = dict(preset='tiny', batch=(1, 8), context=(704,), dtype='float32')
    return (small if jax.default_backend() == 'cpu' else large)[option]


def players(subject: 'Subject', peer: str | None) -> dict[str, Any]:
    """The implementations that are measured, ours first."""
    from vipllava_jax.benchmark.measure import Ours
    from vipllava_jax.benchmark.timing import OURS

    sides: dict[str, Any] = {OURS: Ours(subject)}
    if peer:
        if subject.quantized:
            raise ValueError(SAME_WEIGHTS)
        tell('the same weights for transformers')
        from vipllava_jax.benchmark import peer as transformers

        sides |= transformers.sides(subject)
    return sides


def measured(planned: 'Sequence[Line]', repeats: int, rates: 'Ceilings') -> 'Iterator[Result]':
    """Measures each line; shows the result on stderr."""
    from vipllava_jax.benchmark import report, timing

    for i, line in enumerate(planned, 1):
        tell(f'{i}/{len(planned)} {line} …')
        result = timing.measure(line, repeats)
        tell(f'{" " * len(f"{i}/{len(planned)}")} {report.sentence(result, rates)}')
        yield result


def about(subject: 'Subject') -> dict[str, Any]:
    """The versions, device and settings on which the results depend."""
    import dataclasses

    from vipllava_jax.cli.info import devices, versions

    return {
        'versions': versions(),
        'devices': devices(),
        'flags': {name: os.environ[name] for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS') if name in os.environ},
        'dtype': subject.dtype.name,
        'quantized': subject.quantized,
        'fused': 'qkv' in subject.params['llama']['layers_0'],
        'weights_bytes': subject.size,
        'config': dataclasses.asdict(subject.cfg),
    }


def keep(results: 'list[Result]', rates: 'Ceilings', notes: dict[str, Any], path: Path | None) -> None:
    """Writes the results after every line, so that an interrupted run keeps them."""
    from vipllava_jax.benchmark import report

    if path:
        report.write(path, report.record(results, rates, notes))


def show(results: 'list[Result]', rates: 'Ceilings', notes: dict[str, Any], plot: Path | None) -> None:
    """Prints the table on stdout, in full width if that is not a terminal, and writes the plot."""
    from rich.console import Console

    from vipllava_jax.benchmark import report, roofline

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    device = ', '.join(sorted(set(notes['devices'].values())))
    kind = notes['quantized'] or notes['dtype']
    console.print(report.table(results, rates, f'{notes["model"]}, {kind}, {device}'))
    click.echo(report.HOW + (report.PEER if report.others(results) else ''))
    if plot:
        roofline.plot(plot, results, rates, f'{kind}, {device}')


def tell(what: str) -> None:
    click.echo(what, err=True)
