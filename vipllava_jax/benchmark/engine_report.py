"""Shows the results of the engine's benchmark as a table, and prepares them for JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from vipllava_jax.benchmark.engine_load import Load, Timing
from vipllava_jax.benchmark.engine_parts import LoadResult, LoadSide
from vipllava_jax.benchmark.report import add_columns, others, three_digits
from vipllava_jax.benchmark.timing import OURS

PERCENTILES = 50, 99
TIMES = 'first_token', 'per_token', 'last_token'
EXPLANATION = """\
Engine: from prompts and pictures on the host to texts on the host. requests/s: the median of three repeats,
with the lowest and highest. saturation: all requests at once, a new picture each. one-picture: all at once,
about a picture that is new in each repeat. mixed: like saturation, with random lengths. lone: one after
another. arrivals: at random times, at this share of the rate of saturation. rows in use: the mean share of
the engine's rows that a decoding step is computed for. Times are medians and 99th percentiles over the
requests of all repeats: until the first token and until the last, from when a request is due, and the mean
time per token between them."""
PEER_EXPLANATION = """
transformers, batches: the same requests and weights, `generate` on batches of up to 64 rows in their order,
before the engine starts; mixed runs once. ratio: our rate divided by its rate."""


def rates_table(results: Sequence[LoadResult], about: dict[str, Any]) -> Table:
    """One row per part: the rates and the rows in use; the rate of the other side, and the ratio to it."""
    peers = others(results)
    shown = Table(title=title(about), title_justify='left')
    headers = ['engine', 'count', 'tokens', 'requests/s', 'low–high', 'tokens/s', 'rows in use']
    headers += [header for name in peers for header in (f'{name}: requests/s', 'ratio')]
    add_columns(shown, headers, [_rates(result, peers) for result in results], left=('engine',))
    return shown


def times_table(results: Sequence[LoadResult]) -> Table:
    """One row per part: the median and a high percentile of each time of its requests."""
    shown = Table(title='engine: times of requests in ms', title_justify='left')
    high = f'{PERCENTILES[1]} %'
    headers = ['engine', *(header for name in TIMES for header in (name.replace('_', ' '), high))]
    add_columns(shown, headers, [_times(result) for result in results], left=('engine',))
    return shown


def explanation(results: Sequence[LoadResult]) -> str:
    """What the columns mean."""
    return EXPLANATION + (PEER_EXPLANATION if others(results) else '')


def title(about: dict[str, Any]) -> str:
    """The engine's sizes and the seconds of its start; empty if it did not start."""
    if not about:
        return 'engine: not started'
    rows = f'{about["rows"]} rows of {about["slots"]} slots, {about["long_rows"]} of the full context'
    exact = ', exact' if about['exact'] else ''
    return (
        f'engine: {rows}{exact}; ready after {about["start_s"]:.1f} s; '
        f'{about["compilations"]} programs compiled afterwards'
    )


def _rates(result: LoadResult, peers: Sequence[str]) -> list[str]:
    side = result.sides.get(OURS, LoadSide())
    return [
        name(result),
        str(result.count),
        result.size,
        rate(side),
        spread(side),
        three_digits(tokens_per_second(side)) if side.loads else '',
        '' if side.rows_in_use is None else f'{side.rows_in_use:.0%}',
        *(cell for peer in peers for cell in _against(result, peer)),
    ]


def _times(result: LoadResult) -> list[str]:
    found = latencies(result.sides.get(OURS, LoadSide()).timings)
    return [name(result), *(cell for values in found.values() for cell in percentiles(values) or ('', ''))]


def name(result: LoadResult) -> str:
    """The part; for arrivals with their share of the saturation and their rate."""
    if not result.percent:
        return result.part
    return f'{result.part} {result.percent} %' + (
        f', {three_digits(result.offered)}/s' if result.offered else ''
    )


def sentence(result: LoadResult) -> str:
    """The measurements of one part so far as a line of text."""
    parts = []
    for name, side in result.sides.items():
        text = side.fault or f'{rate(side)} requests/s'
        if (first := percentiles(latencies(side.timings)['first_token'])) and not side.fault:
            text += f', first token after {first[0]} ms, {PERCENTILES[1]} % within {first[1]} ms'
        parts.append(f'{name} {text}')
    return '; '.join(parts)


def rate(side: LoadSide) -> str:
    """The rate, or the error."""
    return side.fault if side.fault or side.rate is None else three_digits(side.rate)


def spread(side: LoadSide) -> str:
    """The lowest and highest rate of several repeats."""
    rates = [load.rate for load in side.loads]
    return f'{three_digits(min(rates))}–{three_digits(max(rates))}' if len(rates) > 1 else ''


def tokens_per_second(side: LoadSide) -> float:
    """The mean over all repeats of new tokens per second."""
    new, seconds = sum(timing.new for timing in side.timings), sum(side.samples)
    return new / seconds if seconds else 0.0


def latencies(timings: Iterable[Timing]) -> dict[str, list[float]]:
    """The known times of the first token, per token and of the last token, in seconds."""
    columns: dict[str, list[float]] = {name: [] for name in TIMES}
    for timing in timings:
        for name, value in zip(TIMES, (timing.first, timing.per_token, timing.end), strict=True):
            if value is not None:
                columns[name].append(value)
    return columns


def percentiles(seconds: Sequence[float]) -> list[str]:
    """The percentiles in milliseconds; none of no times."""
    return [three_digits(x * 1e3) for x in np.percentile(seconds, PERCENTILES)] if seconds else []


def _against(result: LoadResult, name: str) -> tuple[str, str]:
    """Another side's rate, and the ratio of ours to it."""
    side, ours = result.sides.get(name), result.sides.get(OURS)
    if side is None:
        return '', ''
    ratio = f'{ours.rate / side.rate:.2f}×' if ours and ours.rate and side.rate else ''
    return rate(side), ratio


def record(results: Sequence[LoadResult], about: dict[str, Any]) -> dict[str, Any]:
    """What the JSON file says of the engine: its sizes, and the times of every request of every repeat."""
    return {'engine': about, 'loads': [_result(result) for result in results]}


def _result(result: LoadResult) -> dict[str, Any]:
    return {
        'what': result.part,
        'percent_of_saturation': result.percent,
        'offered_per_s': result.offered,
        'requests': result.count,
        'tokens': result.size,
        'sides': {name: _side(side) for name, side in result.sides.items()},
    }


def _side(side: LoadSide) -> dict[str, Any]:
    ms = {
        f'{name}_ms': {f'p{p}': float(np.percentile(values, p)) * 1e3 for p in PERCENTILES}
        for name, values in latencies(side.timings).items()
        if values
    }
    return {
        'requests_per_s': side.rate,
        'tokens_per_s': tokens_per_second(side),
        'rows_in_use': side.rows_in_use,
        **ms,
        'warm_up_s': side.warm_up,
        'fault': side.fault,
        'repeats': [_load(load) for load in side.loads],
    }


def _load(load: Load) -> dict[str, Any]:
    return {
        'seconds': load.seconds,
        'rows_in_use': load.rows_in_use,
        'cached_tokens': load.cached_tokens,
        **{f'{name}_ms': [x * 1e3 for x in values] for name, values in latencies(load.timings).items()},
    }
