"""Streaming weights from files to the device never overwrites a buffer that is still in use."""

import gc
import threading
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY
from vipllava_jax.convert import shards, to_flax
from vipllava_jax.convert.matching import ConversionPlan
from vipllava_jax.convert.table import Leaf
from vipllava_jax.convert.tensors import Tensor, dense
from vipllava_jax.weight_options import FLOATS


def one_after_another(sizes, dtype, layout, tmp_path_factory) -> ConversionPlan:
    """A file of tensors of the same shape and dtype, the i-th filled with i, and a plan to read them."""
    file = tmp_path_factory.mktemp('files') / 'file'
    pairs, data = [], b''
    for i in range(6):
        leaf = Leaf(f'x{i}', f'x{i}', layout, tuple(sizes.items()))
        array = np.full(leaf.shapes[0], i + 1, jnp.dtype(dtype))
        pairs.append((leaf, Tensor(file, len(data), dtype, array.shape, dense(array.shape))))
        data += array.tobytes()
    file.write_bytes(data)
    return ConversionPlan(TINY, tuple(pairs), ())


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('target', ['float32', 'bfloat16'])
@pytest.mark.parametrize('layout', ['D->D', 'FD->DF', '(NH)->NH', '(NH)D->DNH', 'VD->VD'])
def test_a_buffer_is_free_before_it_is_used_again(layout, target, threads, tmp_path_factory, monkeypatch):
    """Tensors of megabytes, so that the CPU still converts one when the next is read."""
    monkeypatch.setattr(to_flax, 'THREADS', threads)
    one = layout in ('D->D', '(NH)->NH')
    sizes = dict(D=2**20 if one else 1024, F=1024, N=1024 if one else 16, H=1024 if one else 64, V=1024)
    sizes = {letter: size for letter, size in sizes.items() if letter in layout}
    plan = one_after_another(sizes, 'float32', layout, tmp_path_factory)
    for i, (_, array) in enumerate(list(to_flax.stream(plan, target))):
        assert np.all(np.asarray(array, np.float32) == i + 1), i


def test_reading_does_not_wait_for_the_compiler(tmp_path_factory, monkeypatch):
    """With a single reading thread: if it also compiled, nothing would be read until then."""
    monkeypatch.setattr(to_flax, 'THREADS', 1)
    started, program, read_tensor_parts = threading.Event(), to_flax.compile_program, shards.read_tensor_parts

    def reading(*args):
        started.set()
        return read_tensor_parts(*args)

    def compiling(*args):
        assert started.wait(10)
        return program(*args)

    monkeypatch.setattr(shards, 'read_tensor_parts', reading)
    monkeypatch.setattr(to_flax, 'compile_program', compiling)
    plan = one_after_another(dict(D=64, F=64), 'float32', 'FD->DF', tmp_path_factory)
    assert len(list(to_flax.stream(plan))) == 6


@pytest.mark.slow
def test_a_leaf_without_references_is_freed(tmp_path_factory):
    plan = one_after_another(dict(D=64, F=64), 'float32', 'FD->DF', tmp_path_factory)
    alive = []
    for _, array in to_flax.stream(plan):
        alive.append(weakref.ref(array))
        del array
        gc.collect()
        assert sum(each() is not None for each in alive) <= 1


@given(st.sampled_from(FLOATS), st.sampled_from(FLOATS), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_casting_rounds_as_numpy_does(tmp_path_factory, dtype, target, seed):
    """All bit patterns, including subnormal numbers, except that the payloads of NaN may differ."""
    array = np.frombuffer(np.random.default_rng(seed).bytes(4096), jnp.dtype(dtype))
    array = np.where(np.isnan(array.astype(np.float32)), np.zeros_like(array), array)
    file = tmp_path_factory.mktemp('files') / 'file'
    file.write_bytes(array.tobytes())
    plan = ConversionPlan(
        TINY, ((Leaf('x', 'x', 'D->D', (('D', array.size),)), Tensor(file, 0, dtype, array.shape, (1,))),), ()
    )
    ((_, found),) = to_flax.stream(plan, target)
    with np.errstate(over='ignore'):
        np.testing.assert_array_equal(np.asarray(found), array.astype(jnp.dtype(target)))
