"""Two processes load a model to one mesh: each reads only its part, and the first saves all of it."""

import dataclasses

import pytest

from tests.conftest import SMALL
from tests.processes import run_processes
from tests.test_checkpoint import random_params
from tests.trees import same
from vipllava_jax import checkpoint, loading
from vipllava_jax.arrays import flat, nested
from vipllava_jax.convert import to_flax
from vipllava_jax.convert.to_torch import export
from vipllava_jax.model.params import weight_axes
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.weight_options import WeightOptions

TEXT = {'heads': 8, 'kv_heads': 4, 'head_size': 24, 'mlp': 192}  # groups of int4 would span processes
SCRIPT = """
import os, sys
from pathlib import Path
import jax
import numpy as np
from vipllava_jax import pods
pods.join('on')
import vipllava_jax as vj
from vipllava_jax import checkpoint, loading
from vipllava_jax.arrays import flat
from vipllava_jax.weight_options import WeightOptions

place, read, preadv = Path(PLACE), 0, os.preadv
def counted(*args):
    global read
    done = preadv(*args)
    read += done
    return done
os.preadv = counted
mesh = vj.make_mesh({'tensor': 4})
for folder, fuse, quantize in (('torch', False, None), ('torch', True, 'int8'), ('small', False, None)):
    read, options = 0, WeightOptions(fuse=fuse, quantize=quantize)
    source = loading.open(place / folder, options, mesh)
    params = source.load(progress=False)
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
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A PyTorch folder `torch`, and `small` with int4 weights."""
    place = tmp_path_factory.mktemp('models')
    cfg = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, **TEXT))
    params = random_params(cfg)
    checkpoint.save(place / 'converted', params, cfg)
    checkpoint.save(place / 'small', nested(quantize_leaves(flat(params), 'int4')), cfg)
    export(place / 'converted', place / 'torch')
    return place


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


def test_each_process_reads_its_part_and_the_first_saves_all(place):
    finished = run_processes(SCRIPT.replace('PLACE', repr(str(place))))
    whole = sum(tensor.nbytes for _, tensor in to_flax.plan_conversion(place / 'torch').pairs)
    expected = bytes_to_read(place / 'torch')
    assert expected < 0.8 * whole
    for process in finished:
        assert process.code == 0, process.err
        lines = process.out.splitlines()
        assert [int(line) for line in lines if line.isdigit()] == [expected, expected, 0]
        assert (
            len(
                [
                    line
                    for line in lines
                    if line.endswith(
                        'saved: exists; choose another folder, or replace it with overwrite (--overwrite)'
                    )
                ]
            )
            == 2
        )
        assert '4 x cpu' in process.out
    for folder in ('torch', 'small'):
        one = loading.open(place / folder, WeightOptions(fuse=False)).load(progress=False)
        same(checkpoint.restore(place / f'{folder} saved')[0], one)
