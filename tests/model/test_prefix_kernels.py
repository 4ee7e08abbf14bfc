"""The kernels that decode rows with a shared prefix equal attention by XLA, and are used where they can."""

import builtins
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.model import prefix_attention, prefix_kernels
from vipllava_jax.model.prefix_attention import KERNEL_SLOTS, PrefixKeys, attend_after_prefix

by_xla = jax.jit(partial(attend_after_prefix, implementation='xla'))


@pytest.fixture
def kernels(monkeypatch):
    """Uses the kernels as on a GPU, interpreted; returns the names of those that were called."""
    called = []

    def interpreted(name, kernel, *args):
        called.append(name)
        return kernel(*args, interpret=True)

    for name in ('attend_in_pieces', 'attend_to_own'):
        kernel = getattr(prefix_kernels, name)
        monkeypatch.setattr(prefix_kernels, name, partial(interpreted, name, kernel))
    monkeypatch.setattr(prefix_kernels, 'lowers', lambda: True)
    monkeypatch.setattr(prefix_attention, 'has_cudnn', lambda: True)
    return called


def inputs(rng, groups, rows, heads, kv_heads, slots, own, dtype=jnp.bfloat16):
    """Random queries, a prefix of each group, and the rows' own keys and slots."""
    B, H = groups * rows, 16

    def normal(*shape):
        return jnp.asarray(2 * rng.normal(size=shape), dtype)

    shared = (normal(groups, slots, kv_heads, H) for _ in 'kv')
    prefix = PrefixKeys(*shared, jnp.asarray(rng.integers(1, slots + 1, groups)))
    k, v = (normal(B, own, kv_heads, H) for _ in 'kv')
    return normal(B, 1, heads, H), prefix, k, v, jnp.asarray(rng.integers(0, own, B))


def test_kernels_equal_xla(rng, kernels, monkeypatch):
    # Two groups of 20 rows, in two tiles each; three pieces of the prefix; two queries share each key.
    monkeypatch.setattr(prefix_kernels, 'QUERIES', 16)
    q, prefix, k, v, offset = inputs(rng, 2, 20, 2, 1, 300, 33)
    prefix = prefix._replace(members=jnp.asarray(rng.random(len(q)) < 0.7))
    found = jax.jit(attend_after_prefix)(q, prefix, k, v, offset=offset)
    assert kernels == ['attend_in_pieces', 'attend_to_own']
    assert found.dtype == q.dtype
    exact = [x.astype(jnp.float32) for x in (q, prefix.k, prefix.v, k, v)]
    whole = prefix._replace(k=exact[1], v=exact[2])
    expected = by_xla(exact[0], whole, *exact[3:], offset=offset)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03, rtol=0.01)


def test_results_of_both_kernels_are_merged_in_float32(rng):
    q, prefix, k, v, offset = inputs(rng, 1, 3, 2, 2, 300, 40, jnp.float32)
    first, second = (
        jax.jit(partial(kernel, interpret=True))
        for kernel in (prefix_kernels.attend_in_pieces, prefix_kernels.attend_to_own)
    )
    y, log_sums = first(q, *prefix[:2], jnp.array([130]))
    assert y.dtype == log_sums.dtype == jnp.float32
    assert len(y) == 3  # the last piece has no filled slot
    found = second(q, k, v, offset + 1, y, log_sums)
    expected = by_xla(q, prefix._replace(lengths=jnp.array([130])), k, v, offset=offset)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ('used', 'changes'),
    [
        (True, {}),
        (True, {'slots': KERNEL_SLOTS}),
        (False, {'slots': KERNEL_SLOTS + 128}),
        (False, {'queries': 2}),
        (False, {'H': 48}),
        (False, {'dtype': jnp.float32}),
        (False, {'implementation': 'xla'}),
        (False, {'implementation': 'cudnn'}),
        (False, {'offset': False}),
    ],
)
def test_kernels_are_used_for_single_queries_and_short_caches(kernels, used, changes):
    settings = {'slots': 128, 'queries': 1, 'H': 32, 'dtype': jnp.bfloat16, 'offset': True} | changes
    q = jnp.zeros((2, settings['queries'], 2, settings['H']), settings['dtype'])
    k = jax.ShapeDtypeStruct((2, settings['slots'], 2, settings['H']), settings['dtype'])
    offset = jnp.zeros(2, jnp.int32) if settings['offset'] else None
    implementation = changes.get('implementation')
    assert prefix_attention._uses_kernels(q, k, offset, implementation) is used


def test_kernels_are_not_used_without_a_gpu(monkeypatch):
    monkeypatch.setattr(prefix_attention, 'has_cudnn', lambda: False)
    q = jnp.zeros((2, 1, 2, 32), jnp.bfloat16)
    assert not prefix_attention._uses_kernels(q, q, jnp.zeros(2, jnp.int32), None)


@pytest.fixture
def fresh():
    caches = prefix_kernels.lowers, prefix_kernels._triton
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_kernels_do_not_lower_for_a_cpu(fresh):
    assert not prefix_kernels.lowers()


def test_kernels_do_not_lower_if_this_jax_has_no_triton(fresh, monkeypatch):
    load = builtins.__import__

    def without_triton(name, scope=None, local=None, names=(), level=0):
        if name == 'jax.experimental.pallas' and 'triton' in (names or ()):
            raise ImportError(name)
        return load(name, scope, local, names, level)

    monkeypatch.setattr(builtins, '__import__', without_triton)
    assert not prefix_kernels.lowers()
