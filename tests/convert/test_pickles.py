"""`.bin` files: tensors are read correctly, and no code in a pickle is ever run."""

import contextlib
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.convert.files import integer, pickled, storage, string, tensor, tuple_of, write_archive, write_bin
from vipllava_jax.convert.pickles import read_pickle
from vipllava_jax.convert.tensors import read_tensor
from vipllava_jax.messages import CheckpointError

FOUR = {'0': np.arange(4, dtype=np.float32).tobytes()}
HELD = storage('0', 'FloatStorage', 4)


def bytes_of(tensor):
    return np.array(read_tensor(tensor, memoryview(bytearray(1 << 12))))


def message(path) -> str:
    with pytest.raises(CheckpointError) as raised:
        read_pickle(path)
    assert str(raised.value).startswith(f'{path}: ')
    assert '\n' not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'pytorch_model.bin'


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_tensors_of_written_files_are_read(path, dtype):
    arrays = {
        'x': np.arange(24).reshape(2, 3, 4).astype(dtype),
        'transposed': np.arange(6).reshape(2, 3).astype(dtype).T,
        'number': np.array(3, dtype),
        'empty': np.zeros((0, 3), dtype),
    }
    write_bin(path, arrays)
    found = read_pickle(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(bytes_of(found[name]), array)


def test_views_of_one_storage_are_read(path):
    views = {
        'whole': tensor(HELD, (2, 2), (2, 1)),
        'column': tensor(HELD, (2,), (2,), offset=1),
        'repeated': tensor(HELD, (3, 2), (0, 1), offset=2),
        'last': tensor(HELD, (1,), (1,), offset=3),
    }
    write_archive(path, pickled(views), FOUR)
    found = {name: bytes_of(each).tolist() for name, each in read_pickle(path).items()}
    assert found == {'whole': [[0, 1], [2, 3]], 'column': [1, 3], 'repeated': [[2, 3]] * 3, 'last': [3]}


class Evil:
    """An object whose pickle runs a command when Python's unpickler reads it."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
@pytest.mark.parametrize(
    ('evil', 'name'),
    [
        (lambda file: Evil(os.system, f'touch {file}'), r'(posix|nt)\.system'),
        (lambda file: Evil(eval, f'open({str(file)!r}, "w")'), r'(builtins|__builtin__)\.eval'),
        (lambda file: Evil(exec, f'open({str(file)!r}, "w")'), r'(builtins|__builtin__)\.exec'),
        (lambda file: Evil(getattr, Evil, 'call'), r'(builtins|__builtin__)\.getattr|tests\.convert'),
        (lambda file: Evil(open, str(file), 'w'), r'(_io|io)\.open'),
        (lambda file: Evil(__import__, 'antigravity'), r'(builtins|__builtin__)\.__import__'),
        (lambda file: Evil(pickle.loads, b''), r'(_pickle|pickle)\.loads'),
        (lambda file: np.arange(3), r'numpy'),
    ],
)
def test_no_code_of_a_pickle_runs(path, tmp_path, evil, name, protocol):
    write_archive(path, pickle.dumps({'x': evil(tmp_path / 'it ran')}, protocol=protocol), {})
    with pytest.raises(CheckpointError, match=f'refuses ({name})') as raised:
        read_pickle(path)
    assert str(raised.value).startswith(f'{path}: ')
    assert not (tmp_path / 'it ran').exists()


@pytest.mark.parametrize(
    'name',
    [
        ('torch', 'load'),
        ('torch.hub', 'load'),
        ('torch.storage', '_load_from_bytes'),
        ('torch._utils', '_rebuild_tensor_v2.__globals__'),
        ('torch', 'FloatStorage.__init__'),
        ('collections', 'OrderedDict.fromkeys'),
        ('builtins', 'dict'),
        ('vipllava_jax.convert.pickles', 'read_pickle'),
        ('torch._utils', '_rebuild_device_tensor_from_numpy'),
        ('os', 'system\nx'),
    ],
)
def test_only_exact_global_names_are_allowed(path, name):
    module, attribute = name
    stacked = b'\x80\x04\x8c' + bytes([len(module)]) + module.encode() + b'\x8c' + bytes([len(attribute)])
    write_archive(path, stacked + attribute.encode() + b'\x93.', {})
    assert f'refuses {" ".join(f"{module}.{attribute}".split())}, which no tensor needs' in message(path)


TENSOR, PARAMETER, DICT = (
    b'ctorch._utils\n_rebuild_tensor_v2\n',
    b'ctorch._utils\n_rebuild_parameter\n',
    b'ccollections\nOrderedDict\n',
)


@pytest.mark.parametrize(
    'program',
    [
        TENSOR + b')R.',  # no arguments
        TENSOR + tuple_of(*[integer(0)] * 6) + b'R.',
        TENSOR + tuple_of(HELD, integer(0), string('ab'), string('ab')) + b'R.',
        TENSOR + tuple_of(HELD, integer(0), b']', b']') + b'R.',
        TENSOR + tuple_of(string('FloatStorage'), integer(0), b')', b')') + b'R.',
        pickled({'x': tensor(HELD, (4,), (1,), offset=1)}),
        pickled({'x': tensor(HELD, (5,), (1,))}),
        pickled({'x': tensor(HELD, (2, 2), (3, 1))}),
        pickled({'x': tensor(HELD, (1 << 62, 1 << 62), (1, 1))}),
        pickled({'x': tensor(HELD, (2,), (1 << 62,))}),
        pickled({'x': tensor(HELD, (2,), (-1,), offset=1)}),
        pickled({'x': tensor(HELD, (-2,), (1,))}),
        pickled({'x': tensor(HELD, (2,), (1,), offset=-1)}),
        pickled({'x': tensor(HELD, (2, 2), (1,))}),
        pickled({'x': tensor(storage('0', 'FloatStorage', 5), (5,), (1,))}),
        pickled({'x': tensor(storage('1', 'FloatStorage', 4), (4,), (1,))}),
        pickled({'x': tensor(storage('../data.pkl', 'FloatStorage', 4), (4,), (1,))}),
        pickled({'x': tensor(storage('0', 'FloatStorage', -4), (4,), (1,))}),
        pickled({'x': tuple_of(string('storage')) + b'Q'}),
        pickled({'x': string('pid') + b'Q'}),
        pickled({'x': HELD}),
        pickled({'x': integer(3)}),
        pickled({'x': pickled({})[2:-1]}),
        pickled({}),
        pickled({}) + b'',
        b'\x80\x02N.',
        b'\x80\x02](X.',
        TENSOR
        + b'}('
        + string('__defaults__')
        + integer(1)
        + b'ub'
        + pickled({})[2:],  # BUILD, which would set an attribute of the function
        TENSOR
        + b'N}('
        + string('__call__')
        + integer(1)
        + b'u\x86b'
        + pickled({})[2:],  # the same, set by setattr
        DICT + b'N}(' + string('__setstate__') + integer(1) + b'u\x86b' + pickled({})[2:],
        TENSOR + b')\x81.',  # NEWOBJ on a function
        PARAMETER + b'tR.',
        b'ctorch\nFloatStorage\n)R.',
        b'r\xff\xff\xff\xff' + pickled({}),  # a memo index of 4 billion
        b'\x80\x04N\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.',  # a bytes object of an exabyte
        b'',
        b'.',
        b'\x80\x09.',
        b'garbage',
    ],
)
def test_malicious_and_broken_programs_are_refused(path, program):
    write_archive(path, program, FOUR)
    message(path)


def test_attributes_of_a_state_dict_are_dropped(path):
    entries = (
        string('x')
        + tensor(HELD, (4,), (1,))
        + string('y')
        + PARAMETER
        + tuple_of(tensor(HELD, (2,), (1,)), b'\x88')
        + b'R'
    )
    state = b'}(' + string('_metadata') + DICT + b')R' + string('items') + integer(1) + b'u'
    write_archive(path, b'\x80\x02' + DICT + b')R(' + entries + b'u' + state + b'b.', FOUR)
    assert [each.shape for each in read_pickle(path).values()] == [(4,), (2,)]


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_dict_of_tensors_or_an_error(tmp_path_factory, program):
    path = tmp_path_factory.mktemp('file') / 'x.bin'
    write_archive(path, program, FOUR)
    message(path)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_read_or_an_error(tmp_path_factory, at, noise):
    path = tmp_path_factory.mktemp('file') / 'x.bin'
    write_bin(path, {'x': np.arange(4, dtype=np.float32), 'y': np.arange(4, dtype=np.float16).reshape(2, 2)})
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(noise)] = noise
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        for each in read_pickle(path).values():
            bytes_of(each)


@pytest.mark.parametrize('keep', [0, 3, 30, 200, -1])
def test_a_truncated_file_is_an_error(path, keep):
    write_bin(path, {'x': np.arange(400, dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    message(path)


def test_other_formats_are_recognized(path):
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    assert 'not a file that torch.save wrote since PyTorch 1.6' in message(path)
    write_archive(path, pickled({'x': tensor(HELD, (4,), (1,))}), FOUR, compression=zipfile.ZIP_DEFLATED)
    assert 'compressed' in message(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'')
        archive.writestr('archive/constants.pkl', b'')
    assert 'a TorchScript program' in message(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('something', b'')
    assert 'no data.pkl' in message(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'')
        archive.writestr('archive/byteorder', b'big')
    assert 'big-endian' in message(path)


def test_an_entry_outside_the_file_is_refused(path):
    write_bin(path, {'x': np.arange(4, dtype=np.float32)})
    data = bytearray(path.read_bytes())
    place = data.rindex(b'PK\1\2') + 42  # the last entry's offset, in the directory at the end
    data[place : place + 4] = struct.pack('<I', len(data) - 30)
    path.write_bytes(data)
    message(path)


@pytest.mark.parity
def test_bin_files_are_read_as_by_torch(path):
    import torch

    base = torch.randn(6, 4, dtype=torch.bfloat16)
    state = torch.nn.Linear(3, 5).state_dict()
    state['view'], state['transposed'], state['ids'] = base[1:3], base.t(), torch.arange(3)
    state['parameter'] = torch.nn.Parameter(torch.randn(2, 2))
    torch.save(state, path)
    found = read_pickle(path)
    assert found.pop('ids').dtype == 'int64'
    for name, each in found.items():
        np.testing.assert_array_equal(bytes_of(each).astype(np.float32), state[name].detach().float().numpy())


@pytest.mark.parity
def test_files_of_old_torch_versions_are_refused(path):
    import torch

    torch.save({'x': torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    assert 'since PyTorch 1.6' in message(path)


@pytest.mark.parity
@pytest.mark.parametrize('protocol', range(1, 6))
def test_every_pickle_protocol_of_torch_is_read(path, protocol):
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    shared = torch.arange(12.0).reshape(3, 4)
    marked = torch.nn.Parameter(torch.ones(2))
    marked.tensor_parallel = True  # an additional attribute, which is ignored
    state = module.state_dict() | {'shared': shared, 'view': shared[1:, ::2], 'marked': marked}
    torch.save(state, path, pickle_protocol=protocol)
    found = read_pickle(path)
    assert list(found) == list(state)
    assert found.pop('1.num_batches_tracked').dtype == 'int64'
    for name, each in found.items():
        np.testing.assert_array_equal(bytes_of(each), state[name].detach().numpy())


@pytest.mark.parity
@pytest.mark.parametrize('dtype', ['complex64', 'complex128', 'float8_e4m3fn', 'uint16', 'bool'])
def test_other_dtypes_keep_their_names(path, dtype):
    import torch

    torch.save({'x': torch.zeros(3, 2).to(getattr(torch, dtype))}, path)
    found = read_pickle(path)['x']
    assert (found.dtype, found.shape) == (dtype, (3, 2))


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('make', 'expected'),
    [
        (lambda torch: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), 'quantized tensors'),
        (lambda torch: torch.eye(2).to_sparse(), 'sparse tensors'),
        (lambda torch: torch.eye(2).to_sparse_csr(), 'sparse tensors'),
        (lambda torch: torch.nested.nested_tensor([torch.ones(2)]), 'nested tensors'),
        (lambda torch: torch.ones(2, device='meta'), 'tensors without data'),
        (lambda torch: torch.UntypedStorage(4), 'holds a storage under'),
        (lambda torch: torch.ones(2).storage(), 'holds a storage under'),
        (lambda torch: {'inner': torch.ones(2)}, "'x': expected a tensor, found dict"),
        (
            lambda torch: torch.nn.Linear(1, 1),
            'refuses torch.nn.modules.linear.Linear, ',
        ),
        (lambda torch: np.ones(2), r'refuses numpy\S+, which no tensor needs'),
        (lambda torch: torch.Size([1]), 'refuses torch.Size'),
        (lambda torch: torch.float32, 'holds torch.float32 under'),
        (lambda torch: b'x', r'refuses _codecs.encode'),
        (lambda torch: torch.ones(2, dtype=torch.complex64).conj().imag, 'negated or conjugated'),
    ],
)
def test_other_objects_than_tensors_are_named(path, make, expected):
    import torch

    torch.save({'x': make(torch)}, path)
    with pytest.raises(CheckpointError, match=expected) as error:
        read_pickle(path)
    assert 'corrupt' not in str(error.value)


@pytest.mark.parametrize('name', ['\x1b[31mred', 'a\nb', '\u202edesrever', 'é' * 2000])
def test_names_are_printable(path, name):
    write_archive(path, pickled({name: integer(1)}), {})
    assert message(path).isprintable()
    write_archive(path, f'c{name}\nx\n.'.encode() if '\n' not in name else b'', {})
    assert message(path).isprintable()
    write_archive(path, pickled({'x': tensor(storage(name, 'FloatStorage', 4), (4,), (1,))}), FOUR)
    assert message(path).isprintable()


def test_strides_of_axes_of_one_element_do_not_matter(path):
    huge = 1 << 62
    views = {
        'one': tensor(HELD, (1, 4, 1), (huge, 1, huge)),
        'none': tensor(HELD, (0, 3), (huge, huge)),
    }
    write_archive(path, pickled(views), FOUR)
    found = read_pickle(path)
    np.testing.assert_array_equal(bytes_of(found['one']), np.arange(4).reshape(1, 4, 1))
    assert bytes_of(found['none']).shape == (0, 3)


def test_a_malicious_tensor_record_is_refused(path, tmp_path):
    """BUILD could set fields after they were checked, such as the file, or strides out of bounds."""
    (tmp_path / 'secret').write_bytes(b'secret' * 9)
    for field, value in (
        ('file', string(str(tmp_path / 'secret'))),
        ('offset', integer(-8)),
        ('strides', tuple_of(integer(-1))),
        ('shape', tuple_of(integer(1 << 40))),
        ('dtype', string('float64')),
    ):
        state = b'}' + string(field) + value + b's'
        for attack in (state + b'b', b'N' + state + b'\x86b'):
            write_archive(path, pickled({'x': tensor(HELD, (4,), (1,)) + attack}), FOUR)
            assert 'refuses to change a tensor' in message(path)
