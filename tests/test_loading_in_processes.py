"""Two processes load a model to one mesh: each reads only its part, and the first saves all of it."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SMALL
from tests.processes import run_processes
from tests.test_checkpoint import random_params
from tests.trees import same
from vipllava_jax import checkpoint, loading
from vipllava_jax.arrays import flat, nested
from vipllava_jax.convert import to_flax
from vipllava_jax.convert.adapter_export import save_adapter
from vipllava_jax.convert.to_torch import export
from vipllava_jax.manifest import split_quantized
from vipllava_jax.model.params import weight_axes
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.training import lora
from vipllava_jax.weight_options import WeightOptions

TEXT = {'heads': 8, 'kv_heads': 4, 'head_size': 24, 'mlp': 192}  # groups of int4 would span processes
SCRIPT = """
import json, os, sys
from pathlib import Path
import jax
import numpy as np
from vipllava_jax import pods
pods.join('on')
import vipllava_jax as vj
from vipllava_jax import checkpoint, loading, storage
from vipllava_jax.arrays import flat
from vipllava_jax.convert.adapter_export import save_adapter
from vipllava_jax.weight_options import WeightOptions

place, read, preadv = Path(PLACE), 0, os.preadv
def counted(*args):
    global read
    done = preadv(*args)
    read += done
    return done
os.preadv = counted
verified, parts, check, start = [], [], storage.Storage.check, storage.Storage.read
def checked(self, path, array):
    verified.append(path)
    return check(self, path, array)
def started(self, path, store, rows):
    parts.extend([path] * (rows is not None))
    return start(self, path, store, rows)
mesh = vj.make_mesh({'tensor': 4})
for folder, fuse, quantize in (('torch', False, None), ('torch', True, 'int8'), ('small', False, None)):
    read, options = 0, WeightOptions(fuse=fuse, quantize=quantize)
    source = loading.open(place / folder, options, mesh)
    storage.Storage.check, storage.Storage.read = checked, started
    params = source.load(progress=False)
    storage.Storage.check, storage.Storage.read = check, start
    print(read)
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), params)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), source.shapes())
    one = dict(flat(loading.open(place / folder, options).load(progress=False)))
    for path, leaf in flat(params):
        whole = one[path]
        if quantize is None and hasattr(leaf, 'with_group'):
            whole = whole.with_group(leaf.group)
        for x, y in zip(jax.tree.leaves(leaf), jax.tree.leaves(whole), strict=True):
            for shard in x.addressable_shards:
                np.testing.assert_array_equal(shard.data, np.asarray(y)[shard.index], path)
    if not fuse:
        checkpoint.save(place / f'{folder} saved', params, source.cfg)
        assert checkpoint.is_checkpoint(place / f'{folder} saved')
        try:
            checkpoint.save(place / f'{folder} saved', params, source.cfg)
        except ValueError as error:
            print(error)
print(repr(vj.Model(params, source.cfg, None)))
source = loading.open(place / 'torch', WeightOptions(adapter=place / 'adapter', merge=False), mesh)
save_adapter(place / 'adapter saved', source.load(progress=False), source.cfg, projector=True)
try:
    loading.open(place / 'damaged', mesh=mesh).load(progress=False)
except ValueError as error:
    print('damaged:', error)
try:  # on one host only, while the other starts to quantize
    folder = place / ('damaged copy' if pods.process_index() else 'converted')
    loading.open(folder, WeightOptions(quantize='int8'), mesh).load(progress=False)
except ValueError as error:
    print('copy:', error)
print(json.dumps([verified, parts]))
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A PyTorch folder `torch`, `small` with int4 weights, an adapter, and a damaged folder."""
    place = tmp_path_factory.mktemp('models')
    cfg = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, **TEXT))
    params = random_params(cfg)
    checkpoint.save(place / 'converted', params, cfg)
    checkpoint.save(place / 'small', nested(quantize_leaves(flat(params), 'int4')), cfg)
    export(place / 'converted', place / 'torch')
    adapted = lora.add(params, cfg, rank=2, alpha=4, key=jax.random.key(1))
    adapted = jax.tree.map(lambda x: x if x.any() else jnp.full_like(x, 0.02), adapted)
    save_adapter(place / 'adapter', adapted, cfg)
    values = dict(checkpoint.open(place / 'small').stream())['llama/layers_0/q/w'].values
    copy_damaged(place / 'small', place / 'damaged', values)
    copy_damaged(
        place / 'converted', place / 'damaged copy', np.asarray(params['llama']['layers_0']['q']['w'])
    )
    return place


def copy_damaged(source, target, array) -> None:
    """Copies a folder, with a wrong bit in one of its arrays."""
    shutil.copytree(source, target)
    values = array.tobytes()
    (file,) = (path for path in target.rglob('d/*') if values in path.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.find(values)] ^= 1
    file.write_bytes(content)


def bytes_to_read(folder) -> int:
    """The bytes that each of two processes needs: half of weights whose first axis in the file is divided."""
    total = 0
    for leaf, tensor in to_flax.plan_conversion(folder).pairs:
        sizes, axes = dict(leaf.sizes), weight_axes(leaf.path)
        divided = {letter for letter in axes.divisible if letter in 'NKFV' and sizes[letter] % 4 == 0}
        first = leaf.layout.strip('(')[0]
        inner = divided - {first}
        row = tensor.nbytes // tensor.shape[0]
        total += tensor.nbytes // 2 if first in divided else tensor.nbytes - (row // 2 if inner else 0)
    return total


@pytest.mark.slow
def test_each_process_reads_its_part_and_the_first_saves_all(place):
    finished = run_processes(SCRIPT.replace('PLACE', repr(str(place))))
    whole = sum(tensor.nbytes for _, tensor in to_flax.plan_conversion(place / 'torch').pairs)
    expected = bytes_to_read(place / 'torch')
    assert expected < 0.8 * whole
    exists = 'saved: exists; choose another folder, or replace it with overwrite (--overwrite)'
    for process in finished:
        assert process.code == 0, process.err
        lines = process.out.splitlines()
        assert [int(line) for line in lines if line.isdigit()] == [expected, expected, 0]
        assert len([line for line in lines if line.endswith(exists)]) == 2
        assert '4 x cpu' in process.out
        (damaged,) = (line for line in lines if line.startswith('damaged: '))
        assert damaged.startswith('damaged: process ')  # the one that reads all of it
        assert 'llama/layers_0/q/w/values does not match the checksum' in damaged
        (copy,) = (line for line in lines if line.startswith('copy: '))
        assert copy.startswith('copy: process 1: ')
    check_converted([json.loads(process.out.splitlines()[-1]) for process in finished], place / 'small')
    for folder in ('torch', 'small'):
        one = loading.open(place / folder, WeightOptions(fuse=False)).load(progress=False)
        same(checkpoint.restore(place / f'{folder} saved')[0], one)
    source = loading.open(place / 'torch', WeightOptions(adapter=place / 'adapter', merge=False))
    save_adapter(place / 'one', source.load(progress=False), source.cfg, projector=True)
    one, saved = (place / name / 'adapter_model.safetensors' for name in ('one', 'adapter saved'))
    assert one.read_bytes() == saved.read_bytes()


def check_converted(read: list, folder) -> None:
    """Arrays of a converted folder of which a process reads a part are verified by the other."""
    stored = dict(split_quantized(checkpoint.open(folder).leaves.items()))
    for (verified, parts), (verified_by_other, _) in (read, read[::-1]):
        assert {*verified} | {*parts} == {*stored}
        assert not {*verified} & {*parts}
        assert {*parts} <= {*verified_by_other}
        assert any(path.endswith('/q/w/values') for path in parts)  # the heads come first
        assert not any(path.endswith('/down/w/values') for path in parts)  # the inputs come last
