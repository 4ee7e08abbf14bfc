"""Each device gets its part of a tensor, and only the bytes of these parts are read, each once."""

import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from tests.conftest import TINY
from vipllava_jax.convert import to_flax
from vipllava_jax.convert.matching import ConversionPlan
from vipllava_jax.convert.table import Leaf
from vipllava_jax.convert.tensors import Tensor, dense, read_tensor_parts
from vipllava_jax.sharding import make_mesh, sharding

MESHES = ({'tensor': 4}, {'fsdp': 8}, {'data': 2, 'tensor': 2}, {'data': 2, 'fsdp': 2, 'tensor': 2})
LAYOUTS = ('(NH)D->DNH', 'D(NH)->NHD', 'FD->DF', 'DF->FD', 'VD->DV', 'Dchw->(hwc)D', '(NH)->NH', 'D->D')


def plan(file, layout, sizes, order=None, offset=0) -> tuple[ConversionPlan, np.ndarray]:
    """A file with one tensor whose axes have an order in memory, and the array in our layout."""
    leaf = Leaf('x', 'x', layout, tuple((a, n) for a, n in sizes.items() if a in layout))
    shape = leaf.shapes[0]
    order = order or range(len(shape))
    stored = np.arange(math.prod(shape), dtype=np.float32).reshape([shape[i] for i in order])
    file.write_bytes(bytes(4 * offset) + stored.tobytes())
    strides = np.array(dense(stored.shape))[np.argsort(order)]
    tensor = Tensor(file, 4 * offset, 'float32', shape, tuple(map(int, strides)))
    found = ConversionPlan(TINY, ((leaf, tensor),), ())
    ((_, whole),) = to_flax.stream(found)
    return found, np.asarray(whole)


@pytest.fixture
def read(monkeypatch):
    """The ranges of bytes that are read, in order."""
    ranges, preadv = [], os.preadv

    def counted(file, buffers, offset):
        done = preadv(file, buffers, offset)
        ranges.append((offset, offset + done))
        return done

    monkeypatch.setattr(os, 'preadv', counted)
    return ranges


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('axes', MESHES)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_device_gets_its_part(tmp_path, layout, axes, reverse, read):
    """Also if the axes are in reverse order in the file, as in a view of a `.bin` file."""
    sizes = dict(D=16, N=8, H=3, F=24, V=40, c=3, h=2, w=2)
    rank = len(Leaf('', '', layout, (*sizes.items(),)).shapes[0])
    found, whole = plan(tmp_path / 'x', layout, sizes, range(rank)[::-1] if reverse else None, offset=5)
    mesh = make_mesh(axes, devices=jax.devices())
    letters = layout.split('->')[1].replace('(hwc)', 'C')
    at = sharding(letters, whole.shape, mesh)
    read.clear()
    ((_, array),) = to_flax.stream(found, sharding={'x': at})
    assert array.sharding == at
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])
    assert sum(end - begin for begin, end in read) == whole.nbytes


def part_of(tensor, index, buffer) -> np.ndarray:
    (view,) = read_tensor_parts([tensor.part(index)], buffer)
    return view


def test_only_the_range_of_a_part_is_read(tmp_path, read):
    array = np.arange(60, dtype=np.float32).reshape(10, 6)
    (tmp_path / 'x').write_bytes(array.tobytes())
    tensor, buffer = Tensor(tmp_path / 'x', 0, 'float32', (10, 6), (6, 1)), memoryview(bytearray(240))
    np.testing.assert_array_equal(part_of(tensor, (slice(2, 4), slice(0, 6)), buffer), array[2:4])
    assert read == [(48, 96)]
    read.clear()
    parts = [tensor.part((slice(0, 10), slice(i, i + 2))) for i in (4, 0)]  # columns: the ranges overlap
    for view, i in zip(read_tensor_parts(parts, buffer), (4, 0), strict=True):
        np.testing.assert_array_equal(view, array[:, i : i + 2])
    assert read == [(0, 240)]
    read.clear()
    parts = [tensor.part((slice(i, i + 1), slice(0, 3))) for i in (9, 1, 4)]  # the ranges are apart
    for view, i in zip(read_tensor_parts(parts, buffer), (9, 1, 4), strict=True):
        np.testing.assert_array_equal(view, array[i : i + 1, :3])
    assert read == [(24, 36), (96, 108), (216, 228)]


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_parts_of_any_view_are_right(tmp_path_factory, data):
    """Also of views that repeat elements or leave gaps, whose parts may be in any order."""
    file = tmp_path_factory.getbasetemp() / 'view'
    stored = np.arange(200, dtype=np.float32)
    file.write_bytes(stored.tobytes())
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    strides = data.draw(st.tuples(*[st.integers(0, 12)] * 3))
    tensor = Tensor(file, 4 * data.draw(st.integers(0, 50)), 'float32', shape, strides)
    buffer = memoryview(bytearray(tensor.span))
    whole = part_of(tensor, [slice(0, n) for n in shape], buffer).copy()
    cuts = st.tuples(
        *(st.sampled_from([slice(a, b) for a in range(n) for b in range(a + 1, n + 1)]) for n in shape)
    )
    indices = data.draw(st.lists(cuts, min_size=1, max_size=4))
    for view, index in zip(
        read_tensor_parts([tensor.part(i) for i in indices], buffer), indices, strict=True
    ):
        np.testing.assert_array_equal(view, whole[index])


def test_one_program_serves_all_devices(tmp_path, monkeypatch):
    compiled, compile_program = [], to_flax.compile_program
    monkeypatch.setattr(
        to_flax, 'compile_program', lambda *args: compiled.append(args) or compile_program(*args)
    )
    found, whole = plan(tmp_path / 'x', 'FD->DF', dict(F=16, D=4))
    leaf, tensor = found.pairs[0]
    pairs = tuple((leaf._replace(path=f'x{i}'), tensor) for i in range(3))
    at = sharding('DF', whole.shape, make_mesh({'tensor': 8}, devices=jax.devices()))
    compiled.clear()
    loaded = dict(to_flax.stream(found._replace(pairs=pairs), sharding=dict.fromkeys(['x0', 'x1', 'x2'], at)))
    assert len(compiled) == 1
    assert len(loaded) == 3


def test_a_single_sharding_serves_all_leaves(tmp_path):
    found, whole = plan(tmp_path / 'x', 'FD->DF', dict(F=16, D=4))
    at = SingleDeviceSharding(jax.devices()[3])
    ((_, array),) = to_flax.stream(found, sharding=at)
    assert array.sharding == at
    np.testing.assert_array_equal(array, whole)


MEMORY = """
import sys
import jax
import numpy as np
jax.config.update('jax_num_cpu_devices', 8)
from pathlib import Path
from vipllava_jax.convert import to_flax
from vipllava_jax.convert.matching import ConversionPlan
from vipllava_jax.convert.table import Leaf
from vipllava_jax.convert.tensors import Tensor
from vipllava_jax.sharding import make_mesh, sharding
from tests.conftest import TINY

def anonymous():
    status = Path('/proc/self/status').read_text()
    return int(status.split('RssAnon:')[1].split()[0]) / 1024

n, mebibytes = 24, 8
pairs = []
for i in range(n):
    layout = ('FD->DF', 'DF->FD')[i % 2]
    leaf = Leaf(f'x{i}', f'x{i}', layout, (('F', 2048), ('D', 1024)))
    shape = leaf.shapes[0]
    pairs.append((leaf, Tensor(Path(sys.argv[1]), i * mebibytes << 20, 'float32', shape, (shape[1], 1))))
at = None
if sys.argv[2] == 'mesh':
    mesh = make_mesh({'tensor': 8})
    at = {leaf.path: sharding(leaf.layout[-2:], leaf.shapes[1], mesh) for leaf, _ in pairs}
for leaf, array in to_flax.stream(ConversionPlan(TINY, (pairs[0], pairs[1]), ()), sharding=at):
    pass  # loads what jax needs
del array
before, peak = anonymous(), 0
plan = ConversionPlan(TINY, tuple(pairs), ())
for _, array in to_flax.stream(plan, sharding=at, at_once=4 * mebibytes << 20):
    peak = max(peak, anonymous() - before)
print(peak)
"""


@pytest.mark.slow
def test_the_host_holds_no_more_on_a_mesh_than_on_one_device(tmp_path):
    """Leaves are dropped as they come, so that the memory is that of buffers and what is on its way."""
    (tmp_path / 'x').write_bytes(bytes(24 * 8 << 20))
    peaks = {}
    for where in ('one', 'mesh'):
        done = subprocess.run(
            [sys.executable, '-c', MEMORY, tmp_path / 'x', where], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks[where] = float(done.stdout)
    assert peaks['mesh'] < peaks['one'] + 24, peaks  # MiB: at most the arrays of three leaves more
    assert peaks['mesh'] < 24 * 8 * 0.75, peaks  # less than all leaves
