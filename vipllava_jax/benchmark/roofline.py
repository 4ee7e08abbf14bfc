"""The roofline plot: operations per second against operations per byte, for each line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vipllava_jax.benchmark.timing import OURS, Result
from vipllava_jax.ceilings import Ceilings
from vipllava_jax.files import replacing

COLOURS = {'vision': 'C2', 'prefill': 'C0', 'decode': 'C1', 'decode-shared': 'C3'}  # the lines with one phase
SHAPES = 'osD^vP*X'


def plot(path: Path, results: Sequence[Result], ceilings: Ceilings, title: str) -> None:
    """Plots the lines with one phase below the device's roofline; hollow markers are other libraries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout='constrained')
    axes = figure.subplots()
    points = list(_points(results))
    ridge = ceilings.matmul / ceilings.bandwidth
    xs = [x for x, *_ in points] or [ridge]
    low, high = min(*xs, ridge) / 2, max(*xs, ridge) * 2
    roof = [(x, min(x * ceilings.bandwidth, ceilings.matmul) / 1e12) for x in (low, ridge, high)]
    axes.plot(*zip(*roof, strict=True), color='black', lw=1.5)
    matmul = f'{ceilings.dtype} matmul {ceilings.matmul / 1e12:,.3g} TFLOP/s '
    axes.text(high, ceilings.matmul / 1e12, matmul, ha='right', va='bottom')
    slope = (low * ridge) ** 0.5
    copy = f'copy {ceilings.bandwidth / 1e9:,.0f} GB/s  '
    axes.text(slope, slope * ceilings.bandwidth / 1e12, copy, ha='right', va='bottom')
    for x, y, result, name in points:
        batches = sorted({r.line.batch for _, _, r, _ in points})
        colour = COLOURS[result.line.what]
        axes.plot(
            x, y / 1e12, SHAPES[batches.index(result.line.batch) % len(SHAPES)],
            color=colour, mfc=colour if name == OURS else 'none', ms=8, alpha=0.85,
        )  # fmt: skip
    axes.set(xscale='log', yscale='log', xlabel='operations per byte', ylabel='TFLOP/s', title=title)
    axes.grid(True, which='both', lw=0.3)
    _legend(axes, points)
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=150)


def _points(results: Sequence[Result]) -> Iterator[tuple[float, float, Result, str]]:
    """Operations per byte and per second of every side; lines with several phases are left out."""
    for result in results:
        if len(result.line.work) == 1:
            nbytes, flop = result.line.work[0]
            for name, side in result.sides.items():
                if side.median:
                    yield flop / nbytes, flop / side.median, result, name


def _legend(axes: Any, points: Sequence[Any]) -> None:
    """The legend: colours for the lines, shapes for the batch sizes, hollow markers for other libraries."""
    from matplotlib.lines import Line2D

    def entry(label: str, marker: str, colour: str, filled: bool = True) -> Any:
        return Line2D(
            [], [], ls='', marker=marker, color=colour, mfc=colour if filled else 'none', label=label
        )

    what = dict.fromkeys(r.line.what for *_, r, _ in points)
    batches = sorted({r.line.batch for *_, r, _ in points})
    entries = [entry(name, 'o', COLOURS[name]) for name in what]
    entries += [entry(f'batch {b}', SHAPES[i % len(SHAPES)], 'grey') for i, b in enumerate(batches)]
    others = {name for *_, name in points} - {OURS}
    entries += [entry('transformers', 'o', 'grey', filled=False)] if others else []
    axes.legend(handles=entries, loc='lower right')
