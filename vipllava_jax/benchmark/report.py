"""Shows results as a table, and writes them as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from vipllava_jax.benchmark.timing import OURS, Result, Side
from vipllava_jax.ceilings import Ceilings
from vipllava_jax.files import write_text

EXPLANATION = """\
Times are medians of the repeats, after a warm-up. % of: the minimum time of the bytes and operations of the
line at the measured rates, as a percentage of the measured time.
prefill: text only, on the device. first-token: with an image, on the device. generate: from a prompt on the
host to an answer on the host. decode: one step, the mean of 64; all rows have one prompt, with an image.
decode-shared: the same, but rows read all of their prompt except the last 64 tokens once. questions: like
generate, about one image that is computed once."""
MESH_EXPLANATION = """
With --mesh, batch and output are those of all devices together. The rates are those of the slowest device,
and the minimum time is that of the share of one device, its rows and its part of the weights, without
communication."""
PEER_EXPLANATION = """
transformers: the same weights and prompts; its decoding steps are timed within its `generate`. The two
libraries are measured in turns. ratio: its time divided by ours."""


def table(results: Sequence[Result], ceilings: Ceilings, title: str) -> Table:
    """One row per line: our time, rate and percentage of the ceiling; the other sides' times and ratios."""
    peers = others(results)
    shown = Table(title=f'{title}\n{rates(ceilings)}', title_justify='left')
    headers = ['what', 'batch', 'tokens', 'ms', 'quartiles', 'output', '% of', '']
    headers += [header for name in peers for header in (f'{name}: ms', 'ratio')]
    add_columns(shown, headers, [_row(result, ceilings, peers) for result in results], left=('what', ''))
    return shown


def rates(ceilings: Ceilings) -> str:
    """The rates of the device as a line of text."""
    return (
        f'measured in this run: copy {ceilings.bandwidth / 1e9:,.0f} GB/s, '
        f'{ceilings.dtype} matmul {ceilings.matmul / 1e12:.3g} TFLOP/s'
    )


def add_columns(
    shown: Table, headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]
) -> None:
    """Adds columns and rows to a table; the columns whose headers are in `left` are justified left."""
    for header, *cells in zip(headers, *rows, strict=True):
        # On a narrow terminal, cells wrap at spaces, so that no number is cut.
        longest = max((len(word) for cell in cells for word in cell.split()), default=1)
        shown.add_column(header, min_width=longest, justify='left' if header in left else 'right')
    for row in rows:
        shown.add_row(*row)


def _row(result: Result, ceilings: Ceilings, peers: Sequence[str]) -> list[str]:
    line, side = result.line, result.sides[OURS]
    return [
        line.what,
        str(line.batch or ''),
        line.size,
        milliseconds(side),
        spread(side),
        output(result),
        percent(result, ceilings),
        line.bound(ceilings) or memory(side),
        *(cell for name in peers for cell in against(result, name)),
    ]


def others(results: Sequence[Any]) -> list[str]:
    """The names of the sides other than ours, in order of first appearance."""
    return [*dict.fromkeys(name for r in results for name in r.sides if name != OURS)]


def sentence(result: Result, ceilings: Ceilings) -> str:
    """The result of one line as a line of text."""
    side = result.sides[OURS]
    parts = [f'{milliseconds(side)} ms' if side.samples else side.fault, spread(side), output(result)]
    if share := percent(result, ceilings):
        parts.append(f'{share} % of {result.line.bound(ceilings)}')
    parts.append(memory(side))
    for name in result.sides:
        if name != OURS:
            ms, ratio = against(result, name)
            parts.append(f'{name} {ms} {ratio}'.strip())
    return ', '.join(filter(None, parts))


def milliseconds(side: Side) -> str:
    """The median, or the error."""
    return side.fault if side.median is None else three_digits(side.median * 1e3)


def spread(side: Side) -> str:
    return '–'.join(three_digits(x * 1e3) for x in side.quartiles) if side.quartiles else ''


def output(result: Result) -> str:
    amount, unit = result.line.output
    seconds = result.sides[OURS].median
    return f'{three_digits(amount / seconds)} {unit}' if amount and seconds else ''


def percent(result: Result, ceilings: Ceilings) -> str:
    """The minimum time for the work at the device's rates, as a percentage of the measured time."""
    seconds = result.sides[OURS].median
    return f'{result.line.floor(ceilings) / seconds:.0%}'[:-1] if result.line.work and seconds else ''


def memory(side: Side) -> str:
    return f'{side.memory / 2**30:.2f} GiB of host memory' if side.memory else ''


def against(result: Result, name: str) -> tuple[str, str]:
    """Another side's median in milliseconds, and its ratio to ours."""
    side, ours = result.sides.get(name), result.sides[OURS].median
    if side is None:
        return '', ''
    return milliseconds(side), f'{side.median / ours:.2f}×' if side.median and ours else ''


def record(results: Sequence[Result], ceilings: Ceilings, about: dict[str, Any]) -> dict[str, Any]:
    """The content of the JSON file: every sample in milliseconds, and a description of what was measured."""
    return {**about, 'ceilings': ceilings._asdict(), 'lines': [_line(r, ceilings) for r in results]}


def _line(result: Result, ceilings: Ceilings) -> dict[str, Any]:
    line = result.line
    return {
        'what': line.what,
        'batch': line.batch,
        'tokens': line.size,
        'bytes': sum(work.bytes for work in line.work),
        'flop': sum(work.flop for work in line.work),
        'floor_ms': line.floor(ceilings) * 1e3,
        'bound': line.bound(ceilings),
        'output': line.output,
        'sides': {name: _side(side) for name, side in result.sides.items()},
    }


def _side(side: Side) -> dict[str, Any]:
    ms = {'median_ms': side.median and side.median * 1e3, 'samples_ms': [x * 1e3 for x in side.samples]}
    return {**ms, 'warm_up_s': side.warm_up, 'anonymous_bytes': side.memory, 'fault': side.fault}


def write_report(path: Path, data: dict[str, Any]) -> None:
    """Writes the JSON file atomically."""
    write_text(path, json.dumps(data, indent=1) + '\n')


def three_digits(x: float) -> str:
    """A number with three significant digits, or with all digits before the decimal point."""
    return f'{x:,.0f}' if x >= 100 else f'{x:.3g}' if x < 1 else f'{x:.{1 if x >= 10 else 2}f}'
