"""The table, the JSON file and the plot of synthetic results."""

import errno
import io
import json
import os

import pytest
from PIL import Image
from rich.console import Console

from vipllava_jax.benchmark import report, roofline
from vipllava_jax.benchmark.timing import NO_MEMORY, OURS, Line, Result, Side
from vipllava_jax.ceilings import Ceilings
from vipllava_jax.model.cost import Work

RATES = Ceilings(4.3e12, 790e12, 'bfloat16')
STEP = Line('decode', '704…768', 8, {}, (Work(16.2e9, 1e11),), (8, 'tokens/s'))
RESULTS = [
    Result(STEP, {OURS: Side([0.004, 0.005, 0.006]), 'transformers': Side([0.025])}),
    Result(
        Line('prefill', '640', 8, {}, (Work(13e9, 67e12),), (5120, 'tokens/s')),
        {OURS: Side([], fault=NO_MEMORY), 'transformers': Side([0.1], fault='')},
    ),
    Result(Line('load', 'PyTorch', 0, {}, output=(14.1, 'GB/s')), {OURS: Side([2.0], memory=2**30)}),
]
SHARED = Result(
    Line('decode-shared', '704…768', 8, {}, (Work(14e9, 1e11),), (8, 'tokens/s')), {OURS: Side([0.004])}
)


@pytest.fixture
def shown():
    out = io.StringIO()
    Console(file=out, width=200).print(report.table(RESULTS, RATES, 'a title'))
    return out.getvalue()


def test_the_table_has_a_row_per_line(shown):
    step, prefill, load = (line for line in shown.splitlines() if line.startswith('│'))
    for cell in ('5.00', '4.50–5.50', '1,600 tokens/s', '75 ', 'bandwidth', '25.0', '5.00×'):
        assert cell in step
    assert NO_MEMORY in prefill
    assert '100' in prefill
    assert '×' not in prefill
    assert '7.05 GB/s' in load
    assert '1.00 GiB of host memory' in load
    assert 'copy 4,300 GB/s, bfloat16 matmul 790 TFLOP/s' in shown
    assert 'transformers: ms' in shown


def test_no_number_is_cut_on_80_columns():
    out = io.StringIO()
    results = [Result(result.line, {OURS: result.sides[OURS]}) for result in RESULTS]
    Console(file=out, width=80).print(report.table(results, RATES, 'a title'))
    assert '…' not in out.getvalue().replace('704…768', '')
    for cell in ('5.00', '4.50–5.50', '1,600', 'tokens/s', '75', 'bandwidth', '7.05'):
        assert cell in out.getvalue()


def test_each_result_is_one_sentence():
    expected = '5.00 ms, 4.50–5.50, 1,600 tokens/s, 75 % of bandwidth, transformers 25.0 5.00×'
    assert report.sentence(RESULTS[0], RATES) == expected
    assert report.sentence(RESULTS[1], RATES).startswith(NO_MEMORY)


def test_json_has_every_sample(tmp_path):
    path = tmp_path / 'speed.json'
    for _ in range(2):
        report.write_report(path, report.record(RESULTS, RATES, {'model': '7b'}))
    content = json.loads(path.read_text())
    assert (content['model'], content['ceilings']['bandwidth']) == ('7b', 4.3e12)
    line = content['lines'][0]
    assert (line['what'], line['batch'], line['bound']) == ('decode', 8, 'bandwidth')
    assert line['floor_ms'] == pytest.approx(3.767, rel=1e-3)
    assert line['sides'][OURS]['samples_ms'] == [4, 5, 6]
    assert content['lines'][1]['sides'][OURS]['fault'] == NO_MEMORY
    assert [p.name for p in tmp_path.iterdir()] == ['speed.json']


@pytest.mark.parametrize('results', [RESULTS, [SHARED], []])
def test_the_plot_is_drawn(results, tmp_path):
    roofline.plot(tmp_path / 'roofline.png', results, RATES, 'a device')
    with Image.open(tmp_path / 'roofline.png') as picture:
        assert len(set(picture.convert('L').resize((90, 60)).get_flattened_data())) > 5


def test_a_plot_on_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, path, **_):
        path.write_bytes(b'half')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', full)
    with pytest.raises(OSError, match='roofline.png'):
        roofline.plot(tmp_path / 'roofline.png', RESULTS, RATES, 'a device')
    assert not [*tmp_path.iterdir()]
