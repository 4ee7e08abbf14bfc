"""The table and the JSON data of synthetic results of the engine."""

import io
import json

import pytest
from rich.console import Console

from vipllava_jax.benchmark import engine_report
from vipllava_jax.benchmark.engine_load import Load, Timing
from vipllava_jax.benchmark.engine_parts import LoadResult, LoadSide
from vipllava_jax.benchmark.timing import NO_MEMORY, OURS

ABOUT = dict(rows=80, long_rows=4, slots=1024, compilations=0, exact=False, start_s=12.34)
PEER = 'transformers, batches'


def side(*seconds, first=0.02, fault=''):
    found = LoadSide(fault=fault)
    for s in seconds:
        timings = tuple(Timing(first, first + 0.063 * (1 + i % 100 // 99), 64) for i in range(100))
        found.add(Load(s, timings, 0.9, 7))
    return found


RESULTS = [
    LoadResult('saturation', '640 + 64', 100, None, sides={PEER: side(10), OURS: side(2, 2.5, 4)}),
    LoadResult('mixed', '600…1500 + 1…256', 100, None, sides={OURS: side(fault=NO_MEMORY), PEER: side(9)}),
    LoadResult('arrivals', '640 + 64', 100, None, percent=50, offered=20.0, sides={OURS: side(5, 5, 5)}),
]


def shown(width=220):
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(engine_report.rates_table(RESULTS, ABOUT))
    console.print(engine_report.times_table(RESULTS))
    return out.getvalue()


def test_the_tables_have_rates_rows_in_use_and_percentiles():
    rows = [line for line in shown().splitlines() if line.startswith('│')]
    saturation, mixed, arrivals, *times = rows
    for cell in ('640 + 64', '40.0', '25.0–50.0', '2,259', '90%', '10.0', '4.00×'):
        assert cell in saturation
    assert NO_MEMORY in mixed
    assert '11.1' in mixed
    assert '×' not in mixed
    assert 'arrivals 50 %, 20.0/s' in arrivals
    assert 'transformers, batches: requests/s' in shown()
    assert [cell.strip() for cell in times[0].split('│')[2:-1]] == [
        '20.0',
        '20.0',
        '1.00',
        '1.01',
        '83.0',
        '83.6',
    ]
    assert [cell.strip() for cell in times[1].split('│')[2:-1]] == [''] * 6


def test_the_title_describes_the_engine():
    assert '80 rows of 1024 slots, 4 of the full context; ready after 12.3 s' in shown()
    assert '0 programs compiled afterwards' in shown()
    assert engine_report.title({}) == 'engine: not started'
    assert ', exact;' in engine_report.title({**ABOUT, 'exact': True})


def test_no_number_is_cut_on_80_columns():
    out, results = io.StringIO(), [RESULTS[2]]
    console = Console(file=out, width=80)
    console.print(engine_report.rates_table(results, ABOUT))
    console.print(engine_report.times_table(results))
    assert '…' not in out.getvalue()
    for cell in ('20.0–20.0', '1,280', '90%', '83.6'):
        assert cell in out.getvalue()


def test_a_part_is_one_sentence():
    assert engine_report.sentence(RESULTS[0]) == (
        'transformers, batches 10.0 requests/s, first token after 20.0 ms, 99 % within 20.0 ms; '
        'vipllava-jax 40.0 requests/s, first token after 20.0 ms, 99 % within 20.0 ms'
    )
    assert engine_report.sentence(RESULTS[1]).startswith(f'vipllava-jax {NO_MEMORY}; ')


def test_transformers_is_explained_only_if_it_was_measured():
    assert PEER in engine_report.explanation(RESULTS)
    assert PEER not in engine_report.explanation(RESULTS[2:])


def test_json_has_the_times_of_every_request():
    data = json.loads(json.dumps(engine_report.record(RESULTS, ABOUT)))
    assert data['engine']['rows'] == 80
    saturation, mixed, arrivals = data['loads']
    ours = saturation['sides'][OURS]
    assert ours['requests_per_s'] == 40
    assert ours['last_token_ms'] == {'p50': pytest.approx(83), 'p99': pytest.approx(83.63)}
    assert len(ours['repeats']) == 3
    assert len(ours['repeats'][0]['first_token_ms']) == 100
    assert ours['repeats'][0]['cached_tokens'] == 7
    assert mixed['sides'][OURS]['fault'] == NO_MEMORY
    assert (arrivals['percent_of_saturation'], arrivals['offered_per_s']) == (50, 20)


def test_times_that_are_not_known_are_left_out():
    whole = LoadSide()
    whole.add(Load(2.0, (Timing(None, 1.5, 64), Timing(None, 2.0, 64))))
    (line,) = engine_report.record([LoadResult('mixed', '', 2, None, sides={PEER: whole})], {})['loads']
    assert 'first_token_ms' not in line['sides'][PEER]
    assert line['sides'][PEER]['rows_in_use'] is None
