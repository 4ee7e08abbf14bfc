"""Commands report unusable weights in one line on stderr, before any long work."""

import json
import os
import shutil

import numpy as np
import pytest

from tests.convert.files import integer, pickled, storage, string, tensor, write_archive, write_safetensors
from vipllava_jax.loading import bundled

HELD = storage('0', 'FloatStorage', 4)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(bundled(), tmp_path / 'copy')


def attacked(folder):
    (folder / 'model.safetensors').unlink()
    state = b'}' + string('file') + string('/etc/passwd') + b's'
    program = pickled({'lm_head.weight': tensor(HELD, (4,), (1,)) + state + b'b'})
    write_archive(folder / 'pytorch_model.bin', program, {'0': bytes(16)})


def special(folder):
    (folder / 'model.safetensors').unlink()
    os.mkfifo(folder / 'model.safetensors')


def special_index(folder):
    (folder / 'model.safetensors').unlink()
    os.mkfifo(folder / 'model.safetensors.index.json')


def quantized(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['quantization_config'] = {'quant_method': 'awq'}
    (folder / 'config.json').write_text(json.dumps(config))


def escaping(folder):
    write_safetensors(folder / 'model.safetensors', {'\x1b[31mred\x07': np.zeros(3, np.float32)})


def wrong(folder):
    write_archive(folder / 'pytorch_model.bin', pickled({'\x1b[31m': integer(3)}), {})
    (folder / 'model.safetensors').unlink()


FAULTS = {
    attacked: 'pytorch_model.bin: refuses to change a tensor, which only an attack would do',
    special: 'model.safetensors: expected a regular file, found a FIFO',
    special_index: 'model.safetensors.index.json: expected a regular file, found a FIFO',
    quantized: 'quantized by awq (config.json): use the original weights with --quantize int8',
    escaping: 'unknown: \\x1b[31mred\\x07',
    wrong: "'\\x1b[31m': expected a tensor, found int",
}


@pytest.mark.parametrize('command', ['info', 'ask', 'convert'])
@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.__name__)
def test_unusable_weights_are_one_line_and_exit_code_2(vipllava, photo, copy, tmp_path, fault, command):
    fault(copy)
    given = {'info': ['--model', copy], 'ask': ['--model', copy, '--image', photo, 'Why?']}
    ran = vipllava(command, *given.get(command, [copy, tmp_path / 'target']))
    assert ran.code == 2
    assert FAULTS[fault] in ran.err
    [line] = ran.err.splitlines()
    assert line.isprintable()
    assert len(line) <= 520
    assert not (tmp_path / 'target').exists()


@pytest.mark.parametrize('command', ['info', 'convert'])
def test_ambiguous_weights_are_a_warning(vipllava, copy, tmp_path, command):
    (copy / 'model.safetensors.index.json').write_text('{}')
    ran = vipllava(command, *(['--model', copy] if command == 'info' else [copy, tmp_path / 'target']))
    assert ran.code == 0
    [line] = [line for line in ran.err.splitlines() if 'is read' in line]
    assert 'model.safetensors is read, as in transformers, and model.safetensors.index.json is not' in line


def test_the_list_of_unused_tensors_is_bounded(vipllava, copy, tmp_path):
    from safetensors.numpy import load_file, save_file

    weights = load_file(copy / 'model.safetensors')
    unused = {f'text_model.\x1b[31m{i:04}': np.zeros(1, np.float32) for i in range(1000)}
    save_file(weights | unused, copy / 'model.safetensors')
    ran = vipllava('convert', copy, tmp_path / 'target')
    assert ran.code == 0
    assert ran.out.splitlines()[1] == 'unused: text_model.\\x1b[31m0000'
    assert ran.out.splitlines()[-1] == 'unused: 700 more tensors'
    assert len(ran.out.splitlines()) == 302
