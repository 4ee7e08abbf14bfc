"""--mesh on the command line: its values, and what `vipllava info` says about a mesh."""

import json

import pytest

from vipllava_jax import loading
from vipllava_jax.cli import mesh_plan
from vipllava_jax.device_memory import abstract_mesh
from vipllava_jax.model.params import weight_axes

HOSTILE = [
    'tensor=0',
    'tensor=1e9',
    'x=2',
    'tensor=2,tensor=2',
    '',
    'tensor',
    'tensor=' + '9' * 10_000,
    '\x1b[31m=2',
]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Restores the variable that commands with a mesh set."""
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '')


@pytest.mark.parametrize('command', [('ask', 'What?'), ('info',), ('bench', '--preset', 'tiny')])
@pytest.mark.parametrize('mesh', HOSTILE, ids=lambda text: text[:16])
def test_an_invalid_mesh_is_an_error_of_one_line(vipllava, command, mesh):
    ran = vipllava(*command, '--mesh', mesh)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert '--mesh' in ran.err
    assert ran.err.strip().isprintable()
    assert len(ran.err) < 600


def test_a_mesh_with_more_devices_than_there_are_is_refused_before_weights_are_read(vipllava, monkeypatch):
    monkeypatch.setattr(loading.Source, 'load', None)
    ran = vipllava('ask', '--model', 'demo', '--mesh', 'tensor=64', 'What?')
    assert (ran.code, ran.out) == (2, '')
    assert 'needs 64 devices, but there are 8' in ran.err


@pytest.mark.slow
def test_answers_on_a_mesh_equal_those_of_one_device(vipllava, photo):
    args = (
        'ask',
        '--model',
        'demo',
        '--image',
        photo,
        '--dtype',
        'float32',
        '--max-new-tokens',
        8,
        'What is it?',
    )
    alone, divided = vipllava(*args), vipllava(*args, '--mesh', 'tensor=2,data=2')
    assert alone.code == divided.code == 0, divided.err
    assert divided.out == alone.out


@pytest.mark.slow
def test_auto_loads_to_the_mesh_that_it_chooses(vipllava, photo):
    args = ('--mesh', 'auto', '--image', photo, '--max-new-tokens', 1, 'What is it?')
    ran = vipllava('ask', '--model', 'demo', *args)
    assert ran.code == 0, ran.err
    source = loading.open(loading.bundled(), mesh='auto')
    assert dict(source.mesh.shape) == {'data': 8}


def test_info_shows_where_the_weights_lie(vipllava, folder):
    ran = vipllava('info', '--model', folder, '--mesh', 'tensor=2,data=4', '--batch', 6, '--context', 100)
    assert ran.code == 0, ran.err
    for text in (
        'tensor=2,data=4: 8 devices',
        '2 of 6 rows, 100 tokens',
        'K / tensor 2',
        'V is looked up by id',
    ):
        assert text in ran.out
    assert 'fits' in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_info_says_why_an_axis_divides_nothing(vipllava, folder):
    ran = vipllava('info', '--model', folder, '--mesh', 'tensor=4099')
    assert 'whole: 4099 does not divide' in ran.out
    assert 'data divides the rows only' not in ran.out


def test_info_reads_no_arrays_and_needs_no_devices(vipllava, folder, monkeypatch):
    import jax

    monkeypatch.setattr(loading.Source, 'load', None)
    monkeypatch.setattr(jax, 'devices', None)
    args = ('info', '--model', folder, '--mesh', 'tensor=2,data=512', '--memory', 'v5e')
    assert '1024 devices of 15.75 GiB' in vipllava(*args).out


def test_info_as_json_has_the_sizes_in_bytes(vipllava, folder):
    args = ('--mesh', 'fsdp=2', '--memory', '1GB', '--train', 'lora', '--json', '--quantize', 'int8')
    ran = vipllava('info', '--model', folder, *args)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found['axes'] == {'fsdp': 2}
    for plan in (found['inference'], found['training']):
        assert plan['memory'] == 10**9
        parts = {name: size for name, size in plan.items() if name not in ('memory', 'total', 'fits')}
        assert sum(parts.values()) == plan['total']
    assert sum(group['bytes'] for group in found['weights']) == found['inference']['weights']


def test_auto_says_what_it_chose_and_why(vipllava, folder):
    plan = json.loads(vipllava('info', '--model', folder, '--mesh', 'data=1', '--json').out)['inference']
    memory = f'{plan["total"] // 10**6 + 1}MB'  # too little for a tenth to stay free
    ran = vipllava('info', '--model', folder, '--mesh', 'auto', '--memory', memory, '--devices', 4)
    assert ran.code == 0, ran.err
    assert 'mesh data=2,tensor=2: 4 devices' in ran.out
    assert 'chosen because the model needs 2 devices' in ran.out
    ran = vipllava('info', '--model', folder, '--mesh', 'auto')
    assert 'mesh data=8' in ran.out
    assert 'weights: all of them are on each device' in ran.out


def test_info_says_if_this_computer_has_fewer_devices(vipllava, folder):
    assert 'this computer has 8' in vipllava('info', '--model', folder, '--mesh', 'data=16').out
    for args in (('data=8',), ('data=16', '--memory', 'v5e')):
        assert 'this computer' not in vipllava('info', '--model', folder, '--mesh', *args).out


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--mesh', 'auto', '--memory', 'v5e'], 'give the number of --devices too'),
        (['--mesh', 'auto', '--memory', '1MB', '--devices', '2'], 'quantize to int8 or int4'),
        (['--mesh', 'data=2', '--devices', '4'], '--devices 4: data=2 has 2 devices'),
        (['--mesh', 'data=2', '--context', '9999'], 'the model has a context of'),
        (['--mesh', 'data=2', '--memory', 'much'], 'expected a size such as 16GiB'),
        (['--mesh', 'data=2', '--train', 'all'], 'stage-1'),
        (
            ['--mesh', 'data=2', '--train', 'finetune', '--quantize', 'int8'],
            'quantized weights cannot be trained',
        ),
    ],
)
def test_invalid_questions_are_errors_of_one_line(vipllava, folder, args, message):
    ran = vipllava('info', '--model', folder, *args)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err


def test_a_mesh_needs_a_model(vipllava):
    ran = vipllava('info', '--mesh', 'data=2')
    assert (ran.code, ran.err) == (2, 'vipllava: --mesh: give the --model that lies on it\n')


def test_options_about_a_mesh_need_one(vipllava):
    ran = vipllava('info', '--batch', 2, '--devices', 4, '--quantize', 'int8')
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert '--batch, --devices' in ran.err
    assert 'only used with --mesh' in ran.err


def test_every_whole_weight_has_a_reason():
    q, embed = weight_axes('llama/layers_0/q/w'), weight_axes('llama/embed/w')
    norm = weight_axes('llama/norm/w')
    mesh = abstract_mesh({'tensor': 4, 'data': 2})
    assert mesh_plan.division(q, (64, 8, 16), mesh) == 'N / tensor 4'
    assert mesh_plan.division(q, (64, 6, 16), mesh) == 'whole: 4 does not divide N 6'
    assert mesh_plan.division(embed, (128, 64), mesh) == 'whole: V is looked up by id'
    assert mesh_plan.division(norm, (64,), mesh) == 'whole: only fsdp would divide it'
    both = abstract_mesh({'fsdp': 2, 'tensor': 4})
    assert mesh_plan.division(q, (64, 8, 16), both) == 'D / fsdp 2, N / tensor 4'
