"""vipllava.json: the entries of an untrusted file are checked and named in errors."""

import json
import shutil

import pytest

from tests.test_storage import message, saved
from tests.trees import same
from vipllava_jax import checkpoint
from vipllava_jax.messages import CheckpointError
from vipllava_jax.weight_options import QUANTIZED


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A folder and the params in it."""
    folder = tmp_path_factory.mktemp('models') / 'model'
    return folder, saved('float32', folder)


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model[0], tmp_path / 'copy')


def edited(folder, **fields) -> None:
    mark = folder / 'vipllava.json'
    content = json.loads(mark.read_text()) | fields
    mark.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_a_folder_without_checksums_can_be_read(model, copy):
    edited(copy, checksums=None)
    same(checkpoint.restore(copy)[0], model[1])


def test_checksums_must_match_the_listed_arrays(copy):
    sums = json.loads((copy / 'vipllava.json').read_text())['checksums']
    for wrong, expected in (
        (
            {k: v for k, v in sums.items() if k != 'llama/norm/w'},
            "do not agree with params on 'llama/norm/w'",
        ),
        (sums | {'x\x1b': '0' * 16}, r'do not agree with params on .*x.*x1b'),
        (sums | {'llama/norm/w': '0' * 16}, 'llama/norm/w does not match the checksum'),
        (sums | {'llama/norm/w': 3}, "'llama/norm/w': 3 is not a checksum"),
        (sums | {'llama/norm/w': 'x' * 10**6}, "'llama/norm/w': 'xxx.* is not a checksum"),
        ([*sums], 'checksums: expected an object'),
        (7, 'checksums: expected an object, found 7'),
    ):
        edited(copy, checksums=wrong)
        with pytest.raises(CheckpointError, match=expected):
            checkpoint.restore(copy)


def test_more_layers_than_weights_are_refused_early(copy):
    text = json.loads((copy / 'config.json').read_text())
    text['text_config']['num_hidden_layers'] = 4000
    (copy / 'config.json').write_text(json.dumps(text))
    assert 'layers' in message(copy)


@pytest.mark.parametrize('dtype', QUANTIZED)
def test_values_and_scale_must_belong_together(tmp_path, dtype):
    folder = tmp_path / 'model'
    saved(dtype, folder)
    params = json.loads((folder / 'vipllava.json').read_text())['params']
    for part, entry in (
        ('scale', ['float32', [1]]),
        ('scale', ['float32', []]),
        ('scale', ['float32', [1] * 8]),
        ('values', ['float32', [56, 48]]),
        ('values', ['int8', []]),
        ('values', ['int32', [3]]),
    ):
        edited(folder, params=params | {f'llama/layers_0/gate/w/{part}': entry})
        assert 'llama/layers_0/gate/w' in message(folder)
    edited(folder, params=params | {'llama/norm/w': ['int8', [48]]})
    assert 'llama/norm/w' in message(folder)


WRONG = [
    {'../../x': ['float32', [1]]},
    {'a\x1b[2J': ['float32', [1]]},
    {'/'.join('a' * 9): ['float32', [1]]},
    {'a' * 10**6: ['float32', [1]]},
    {'': ['float32', [1]]},
    {'a//b': ['float32', [1]]},
    {'x': ['object', [1]]},
    {'x': ['float64', [1]]},
    {'x': [['float32'], [1]]},
    {'x': ['float32', [10**12]]},
    {'x': ['float32', [-1]]},
    {'x': ['float32', [True]]},
    {'x': ['float32', [1.0]]},
    {'x': ['float32', [1] * 100]},
    {'x': ['float32', 'abc']},
    {'x': ['float32', {'1': 2}]},
    {'x': ['float32', [1], 3]},
    {f'x{i}': ['float32', [1]] for i in range(10_001)},
    {},
]


@pytest.mark.parametrize('params', WRONG, ids=range(len(WRONG)))
def test_an_untrusted_list_is_bounded_and_its_file_is_named(copy, params):
    edited(copy, params=params)
    error = message(copy)
    assert error.startswith(f'{copy}/vipllava.json: ')
    assert error.isprintable()


@pytest.mark.parametrize('format', [None, 0, 4, -1, 10**400, 'x' * 10**6, [[1]], {}, 1.5, '1'])
def test_an_invalid_format_is_an_error(copy, format):
    edited(copy, format=format, version='9\x1b' * 1000)
    assert 'vipllava.json: format ' in message(copy)
