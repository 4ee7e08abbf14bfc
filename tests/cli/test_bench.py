"""`vipllava bench` as a user runs it."""

import importlib.util
import json
import sys

import pytest
from PIL import Image

from vipllava_jax import cli

SMALL = ('bench', '--preset', 'tiny', '--batch', '1', '--context', '192', '--repeats', 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Replaces the measured rates, which take seconds, by constants, and restores the environment."""
    from vipllava_jax import ceilings

    rates = ceilings.Ceilings(5e10, 5e11, 'float32')
    monkeypatch.setattr(ceilings, 'measure_ceilings', lambda dtype: rates)
    for name in ('XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_PREALLOCATE'):
        monkeypatch.setenv(name, '')


@pytest.mark.slow
def test_results_are_shown_as_table_json_and_plot(vipllava, tmp_path):
    file, plot = tmp_path / 'speed.json', tmp_path / 'roofline.png'
    ran = vipllava(*SMALL, '--what', 'vision,decode', '--json', file, '--plot', plot)
    assert ran.code == 0, ran.err
    for expected in ('tiny, float32', 'vision', 'decode', '192…256', 'tokens/s', 'bandwidth', '50 GB/s'):
        assert expected in ran.out
    for expected in ('1/2 vision, batch 1', '2/2 decode, batch 1', '% of bandwidth'):
        assert expected in ran.err
    data = json.loads(file.read_text())
    assert [line['what'] for line in data['lines']] == ['vision', 'decode']
    assert len(data['lines'][1]['sides']['vipllava-jax']['samples_ms']) == 3
    assert data['config']['text']['width'] == 128
    assert {'jax', 'vipllava-jax', 'python'} <= data['versions'].keys()
    with Image.open(plot) as picture:
        assert picture.width > 1000


@pytest.fixture
def engine(monkeypatch):
    """Replaces the engine by one that answers at once."""
    from tests.benchmark.engines import Engine
    from vipllava_jax.benchmark import engine_run

    monkeypatch.setattr(engine_run, 'Engine', Engine)
    return Engine


@pytest.mark.slow
def test_the_engine_has_tables_of_its_own(vipllava, engine, tmp_path):
    file = tmp_path / 'speed.json'
    args = ('--engine-requests', 4, '--engine-percents', 50, '--engine-rows', 4, '--engine-exact')
    ran = vipllava('bench', '--preset', 'tiny', '--what', 'engine', *args, '--json', file)
    assert ran.code == 0, ran.err
    for expected in (
        '4 rows of 1024 slots',
        'saturation',
        'arrivals 50 %',
        'rows in use',
        'times of requests',
    ):
        assert expected in ran.out
    for expected in ('starting the engine', 'saturation, 4 requests, 128 + 64: vipllava-jax'):
        assert expected in ran.err
    assert 'decode' not in ran.out.split('engine: 4 rows')[0]
    data = json.loads(file.read_text())
    parts = ['saturation', 'one-picture', 'mixed', 'lone', 'arrivals']
    assert [load['what'] for load in data['loads']] == parts
    assert (data['lines'], data['engine']['exact']) == ([], True)
    assert engine.made[-1].arguments == {'queue': 1024, 'rows': 4, 'exact': True}


@pytest.mark.slow
def test_a_real_engine_answers_and_compiles_nothing_meanwhile(vipllava, tmp_path):
    file, parts = tmp_path / 'speed.json', ('--engine-parts', 'one-picture,lone')
    sizes = ('--engine-requests', 3, '--engine-rows', 2, '--engine-slots', 256, '--engine-long-rows', 0)
    ran = vipllava('bench', '--preset', 'tiny', '--what', 'engine', *parts, *sizes, '--json', file)
    assert ran.code == 0, ran.err
    assert '2 rows of 256 slots, 0 of the full context' in ran.out
    data = json.loads(file.read_text())
    one, lone = (load['sides']['vipllava-jax'] for load in data['loads'])
    for side in (one, lone):
        assert side['requests_per_s'] > 0
        assert 0 < side['first_token_ms']['p50'] < side['last_token_ms']['p50']
    assert all(repeat['cached_tokens'] > 0 for repeat in one['repeats'])
    assert data['engine']['compilations'] == 0


def test_other_lines_say_nothing_of_the_engine(vipllava, engine, tmp_path):
    file = tmp_path / 'speed.json'
    ran = vipllava(*SMALL, '--what', 'vision', '--json', file)
    assert ran.code == 0, ran.err
    assert 'engine' not in ran.out
    assert not {'engine', 'loads'} & json.loads(file.read_text()).keys()


def test_an_interrupted_engine_shows_the_parts_so_far(vipllava, engine, monkeypatch, tmp_path):
    from vipllava_jax.benchmark import engine_parts

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_parts, 'send_in_turn', interrupt)
    monkeypatch.setattr(cli.signals, 'end_by_interrupt', lambda: sys.exit(130))
    args = ('--what', 'engine', '--engine-requests', 4, '--engine-parts', 'saturation,lone')
    ran = vipllava('bench', '--preset', 'tiny', *args, '--json', tmp_path / 'speed.json')
    assert ran.code == 130
    assert 'saturation' in ran.out
    assert engine.made[-1].closed
    assert json.loads((tmp_path / 'speed.json').read_text())['loads'][0]['what'] == 'saturation'


def test_a_failing_engine_is_reported(vipllava, engine, monkeypatch):
    from vipllava_jax.benchmark import engine_run

    monkeypatch.setattr(engine_run, 'Engine', lambda *_, **__: engine(fault='a defect'))
    ran = vipllava('bench', '--preset', 'tiny', '--what', 'engine', '--engine-parts', 'lone')
    assert ran.code == 1
    assert 'a defect' in ran.out


def test_a_checkpoint_is_measured(vipllava, folder):
    args = ('--batch', '2', '--context', '100', '--repeats', 3)
    ran = vipllava('bench', '--model', folder, '--what', 'decode', *args)
    assert ran.code == 0, ran.err
    assert '100…164' in ran.out


def test_an_interruption_shows_the_results_so_far(vipllava, monkeypatch, tmp_path):
    from vipllava_jax.benchmark import timing

    measure = timing.measure_line

    def once(line, repeats):
        if line.what == 'decode':
            raise KeyboardInterrupt
        return measure(line, repeats)

    monkeypatch.setattr(timing, 'measure_line', once)
    monkeypatch.setattr(cli.signals, 'end_by_interrupt', lambda: sys.exit(130))
    ran = vipllava(*SMALL, '--what', 'vision,decode', '--json', tmp_path / 'speed.json')
    assert ran.code == 130
    assert 'images/s' in ran.out
    assert len(json.loads((tmp_path / 'speed.json').read_text())['lines']) == 1


@pytest.mark.parametrize(('message', 'code'), [('RESOURCE_EXHAUSTED: no room', 0), ('a defect', 1)])
def test_a_failing_line_is_reported_and_the_others_continue(vipllava, monkeypatch, message, code):
    from vipllava_jax.benchmark.measure import Ours

    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(Ours, 'vision', fail)
    ran = vipllava(*SMALL, '--what', 'vision,decode')
    assert ran.code == code
    assert ('does not fit in memory' if code == 0 else 'a defect') in ran.out
    assert '192…256' in ran.out


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--what', 'speed'], "'speed' is not one of compile, vision"),
        (['--batch', '1,x'], 'not a list of numbers from 1'),
        (['--batch', '0'], 'not a list of numbers from 1'),
        (['--context', '100'], '--context 100: this model can be measured from'),
        (['--context', '9000'], '--context 9000'),
        (['--repeats', '2'], '--repeats'),
        (['--engine-parts', 'idle'], "'idle' is not one of saturation, one-picture"),
        (['--engine-percents', '50 %'], 'not a list of numbers from 1'),
        (['--engine-requests', '0'], '--engine-requests'),
        (['--plot', 'x.jpg'], 'expected a name that ends in .png'),
        (['--json', 'no/such/x.json'], 'there is no folder'),
        (['--model', 'x'], '--model and --preset'),
        (['--peer', 'transformers', '--quantize', 'int8'], 'cannot use quantized weights'),
        (['--json', 'x.png', '--plot', './x.png'], 'one file'),
    ],
)
def test_invalid_options_are_errors_of_one_line(vipllava, args, message):
    code, out, err = vipllava('bench', '--preset', 'tiny', *args)
    assert (code, out) == (2, '')
    assert message in err
    assert err.count('\n') == 1  # before weights are created


@pytest.mark.by_hand
def test_a_mesh_is_measured_with_the_batch_of_all_devices(vipllava, tmp_path):
    file = tmp_path / 'speed.json'
    args = ('--mesh', 'tensor=2,data=2', '--what', 'vision,first-token,decode', '--json', file)
    ran = vipllava('bench', '--preset', 'tiny', '--batch', 4, '--context', 192, '--repeats', 3, *args)
    assert ran.code == 0, ran.err
    assert 'data=2,tensor=2 on 4 x cpu' in ran.out
    assert 'With --mesh, batch and output are those of all devices' in ran.out
    data = json.loads(file.read_text())
    assert data['mesh'] == {'data': 2, 'tensor': 2}
    *_, decode = data['lines']
    assert (decode['batch'], decode['output']) == (4, [4, 'tokens/s'])
    assert decode['sides']['vipllava-jax']['fault'] == ''


@pytest.mark.slow
def test_auto_chooses_the_mesh_and_says_why(vipllava, folder):
    args = ('--mesh', 'auto', '--what', 'decode', '--context', 100, '--repeats', 3)
    ran = vipllava('bench', '--model', folder, *args)
    assert ran.code == 0, ran.err
    assert 'mesh data=8: the model fits on one device' in ran.err
    assert '100…164' in ran.out


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--mesh', 'data=4', '--batch', '2,4'], '--batch 2: the mesh divides the rows by 4'),
        (['--mesh', 'tensor=64'], 'needs 64 devices'),
        (['--mesh', 'tensor=2', '--peer', 'transformers'], 'leave out --mesh or --peer'),
    ],
)
def test_what_a_mesh_cannot_measure_is_refused(vipllava, args, message):
    ran = vipllava('bench', '--preset', 'tiny', *args)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err


def test_requests_that_do_not_fit_the_model_are_refused_before_it_is_loaded(vipllava, folder, monkeypatch):
    from vipllava_jax import loading

    monkeypatch.setattr(loading.Source, 'load', None)
    ran = vipllava('bench', '--model', folder, '--context', 100, '--what', 'engine')
    assert (ran.code, ran.err.count('\n')) == (2, 1)
    assert 'choose other --engine-parts' in ran.err


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--context', '9000', '--context 9000'),
        ('--json', 'config.json', 'lies in'),
        ('--plot', 'x.png', 'lies in'),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(
    vipllava, folder, monkeypatch, option, value, message
):
    from vipllava_jax import loading

    monkeypatch.setattr(loading.Source, 'load', None)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
    ran = vipllava('bench', '--model', folder, option, folder / value if 'lies' in message else value)
    assert (ran.code, ran.err.count('\n')) == (2, 1)
    assert message in ran.err


@pytest.mark.parametrize(
    ('args', 'absent', 'message'),
    [
        (['--plot', 'x.png'], 'matplotlib', 'vipllava-jax[bench]'),
        (['--peer', 'transformers'], 'torch', 'needs torch'),
    ],
)
def test_missing_packages_are_named_first(vipllava, monkeypatch, args, absent, message):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == absent else find(name))
    code, out, err = vipllava('bench', *args)
    assert (code, out) == (2, '')
    assert message in err
    assert err.count('\n') == 1
