"""`vipllava bench`: measures the speed of each part of the model, and compares it to the device's limits."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.bench_engine import EngineOptions, engine_options
from vipllava_jax.cli.bench_options import Options
from vipllava_jax.cli.bench_outputs import description, save_results, show_results
from vipllava_jax.cli.lists import Names, Numbers
from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.mesh import mesh_option
from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FILE_PATH, FOLDER
from vipllava_jax.evaluation.outputs import check_outputs
from vipllava_jax.signals import raising_interrupts, temporary_folder
from vipllava_jax.weight_options import FLOATS, QUANTIZED

if TYPE_CHECKING:
    from vipllava_jax.benchmark.engine_parts import LoadResult
    from vipllava_jax.benchmark.engine_run import EngineRun
    from vipllava_jax.benchmark.subject import Subject
    from vipllava_jax.benchmark.timing import Line, Result

ON_MESH = ('compile', 'vision', 'prefill', 'first-token', 'decode', 'generate')
DEFAULT = (*ON_MESH, 'load', 'convert')  # without a mesh; these depend on the disk more than on the devices
WHAT = (*DEFAULT, 'decode-shared', 'questions', 'engine')


@click.command()
@click.option(
    '--model',
    'source',
    metavar='M',
    type=FOLDER,
    help='The model: a folder, PyTorch or converted; a name on the Hugging Face Hub; or demo.',
)
@click.option(
    '--preset',
    type=click.Choice(('7b', '13b', 'tiny')),
    help='Measure random weights of this size instead.  [default: 7b; tiny on a CPU]',
)
@click.option(
    '--what',
    metavar='A,B,…',
    type=Names(WHAT),
    help=f'Measure only some of {", ".join(WHAT)}.  [default: all but the last three]',
)
@click.option(
    '--batch',
    'batches',
    metavar='N,…',
    type=Numbers(),
    help='The batch sizes.  [default: 1,8,32,128; 1,8 on a CPU]',
)
@click.option(
    '--context',
    'contexts',
    metavar='N,…',
    type=Numbers(),
    help='The context lengths in tokens.  [default: 704,1500; 704 on a CPU]',
)
@click.option(
    '--repeats',
    metavar='N',
    type=WholeNumber(3, 10_000),
    default=10,
    show_default=True,
    help='The number of samples per line.',
)
@click.option(
    '--dtype',
    type=click.Choice(FLOATS),
    help='The dtype of the weights that are not quantized.  [default: that of the checkpoint; for a preset '
    'bfloat16, or float32 on a CPU]',
)
@click.option('--quantize', type=click.Choice(QUANTIZED), help='Quantize the large weights of the decoder.')
@click.option(
    '--attention',
    type=click.Choice(('xla', 'cudnn')),
    help='The implementation of attention.  [default: cudnn where possible]',
)
@click.option(
    '--fuse/--no-fuse',
    default=None,
    help='Join weights that have the same input, such as q, k and v.  [default: on a GPU]',
)
@mesh_option
@click.option(
    '--peer',
    type=click.Choice(('transformers',)),
    help='Also measure this library, alternating with vipllava-jax.',
)
@click.option('--json', 'json_file', metavar='FILE', type=FILE_PATH, help='Write all samples to this file.')
@click.option('--plot', metavar='FILE.png', type=FILE_PATH, help='Draw a roofline plot to this file.')
@engine_options
def bench(**options: Any) -> None:
    """Measure how fast each part of the model runs on this device.

    Every line of the table is timed after a warm-up and reported as the median of its repeats, with the
    quartiles. It is compared to a minimum time: that of its bytes and operations at the rates of a memory
    copy and of a matrix product, which are measured in the same run. With --mesh, the batch is that of all
    devices together, and the minimum time that of one device's share. Loading, converting and compiling are
    repeated at most three times; compiling without a cache runs once. Ctrl-C prints the results so far.

    For many questions about one picture: decode-shared is a step of rows that read all but the last 64 tokens
    of their context once, and questions a batch from the arrays of its prompts to answers of 64 tokens.

    For continuous batching: engine sends requests with a picture each to an engine, all at once and at random
    times, and reports rates and latencies in a table of its own, three repeats each.

    \b
    Examples:
      vipllava bench
      vipllava bench --model ./vip-llava-7b --what decode,prefill --batch 1,8 --json speed.json
      vipllava bench --preset 7b --what decode,decode-shared,questions --batch 32,128
      vipllava bench --preset 7b --what engine --engine-parts saturation,lone
      vipllava bench --preset 13b --mesh tensor=4 --what decode --batch 1,32
      vipllava bench --preset 7b --peer transformers --batch 1 --context 704 --plot roofline.png
    """
    engine, others = EngineOptions.split(options)
    chosen = Options(**others, engine=engine)
    chosen.check()
    reserve(shared=chosen.peer is not None)
    from vipllava_jax.benchmark.measure import compilation_cache

    with compilation_cache(), temporary_folder('vipllava-bench-') as place:
        run(chosen, Path(place))


def run(options: Options, place: Path) -> None:
    """Measures and prints the results; `place` is a temporary folder. Exits with 1 if a line failed."""
    from vipllava_jax.benchmark import plan
    from vipllava_jax.benchmark import run as running

    if options.peer and options.quantize:
        raise ValueError(running.NO_QUANTIZED_PEER)
    missing = [name for name in ('torch', 'transformers') if not importlib.util.find_spec(name)]
    if options.peer and missing:
        raise ValueError(f'--peer needs {" and ".join(missing)}: pip install torch transformers')
    folder, cfg = running.find_model(options.source, options.preset)
    check_outputs(options.outputs, (), [folder] if folder else [])
    contexts = options.contexts or running.default('contexts')
    plan.check_contexts(cfg, contexts)
    largest = max(options.batches or (1,)), max(contexts)
    mesh = running.find_mesh(options.mesh, folder, cfg, options.weights, *largest, show)
    plan.check_batches(options.batches or (), plan.Shares.of(mesh))
    if options.with_engine:
        options.engine.check(cfg)
    subject = running.load_subject(folder, cfg, options.weights, options.attention, show, mesh)
    measure(options, subject, folder, place)


def measure(options: Options, subject: 'Subject', folder: Path | None, place: Path) -> None:
    """Measures the lines and then the engine, and prints the results, also when interrupted."""
    from vipllava_jax.benchmark import run as running

    compared = running.implementations(subject, options.peer, show)
    show('measuring the device: copies and matrix products')
    rates = running.measure_rates(subject.dtype, subject.mesh)
    lines = planned_lines(options, compared, subject, folder, place)
    engine = options.engine.plan(subject) if options.with_engine else None
    model = options.source or options.preset or running.default('preset')
    notes = {**description(subject), 'model': model, 'repeats': options.repeats}
    results: list[Result] = []
    try:
        with raising_interrupts():
            for result in running.measure_lines(lines, options.repeats, rates, show):
                results.append(result)
                for implementation in compared.values():
                    implementation.release()
                save_results(results, engine, rates, notes, options.json_file)
            for _ in measured_loads(engine, subject, compared):
                save_results(results, engine, rates, notes, options.json_file)
    finally:  # the results so far
        show_results(results, engine, rates, notes, options.plot)
    measured = [*results, *(engine.measured if engine else ())]
    if any(side.fault and not side.out_of_memory for result in measured for side in result.sides.values()):
        sys.exit(1)


def measured_loads(
    engine: 'EngineRun | None', subject: 'Subject', compared: dict[str, Any]
) -> 'Iterator[LoadResult]':
    """The parts of the engine's benchmark, each after it has been measured; none if it was not chosen."""
    if engine is None:
        return iter(())
    from vipllava_jax.benchmark import engine_run
    from vipllava_jax.benchmark.timing import OURS

    peers = {name: side for name, side in compared.items() if name != OURS}
    return engine_run.measure(engine, subject, peers, show)


def planned_lines(
    options: Options, compared: dict[str, Any], subject: 'Subject', folder: Path | None, place: Path
) -> 'list[Line]':
    """The lines to measure, in order."""
    from vipllava_jax.benchmark import load_and_convert, plan
    from vipllava_jax.benchmark.run import default

    shares = plan.Shares.of(subject.mesh)
    what = options.what or (DEFAULT if subject.mesh is None else ON_MESH)
    batches = options.batches or [batch for batch in default('batches') if batch % shares.rows == 0]
    batches, contexts = batches or [shares.rows], options.contexts or default('contexts')
    folders = load_and_convert.Folders(subject, folder, place, options.quantize)
    return [
        *plan.lines(compared, subject.costs, what, batches, contexts, shares),
        *load_and_convert.lines(folders, what),
    ]


def show(text: str) -> None:
    click.echo(text, err=True)
