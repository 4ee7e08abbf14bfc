"""Meshes: their axes, the partitions of letters, and functions that run per device."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vipllava_jax import sharding
from vipllava_jax.sharding import make_mesh, mesh_of, per_device, pin, shard_shape, spec


def mesh(**axes: int) -> Mesh:
    return make_mesh(axes, devices=jax.devices())


def put(x, letters, mesh):
    return jax.device_put(x, sharding.sharding(letters, x.shape, mesh))


def test_a_mesh_has_auto_axes_in_a_fixed_order_with_tensor_innermost():
    made = mesh(tensor=4, data=2)
    assert made.axis_names == ('data', 'tensor')
    assert set(made.axis_types) == {AxisType.Auto}
    assert [device.id for device in made.devices[0]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ('axes', 'message'),
    [
        ({'rows': 2}, "mesh: there is no axis 'rows'; the axes are data, fsdp, tensor"),
        ({'data': 0}, 'mesh: data is 0, but must be a whole number of devices'),
        ({'data': True}, 'mesh: data is True, but must be a whole number of devices'),
        ({'data': 2.0}, 'mesh: data is 2.0, but must be a whole number of devices'),
        ({'tensor': 16}, 'mesh: tensor 16 needs 16 devices, but there are 8'),
        ({'data': 3, 'tensor': 3}, 'mesh: data 3 x tensor 3 needs 9 devices, but there are 8'),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(axes, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        make_mesh(axes)


@pytest.mark.parametrize(
    ('letters', 'shape', 'axes', 'expected'),
    [
        ('BTD', (8, 5, 6), {'data': 2, 'fsdp': 2}, (('data', 'fsdp'),)),
        ('BTD', (2, 5, 6), {'data': 2, 'fsdp': 2}, ('data', None, 'fsdp')),  # 2 rows: fsdp divides the width
        ('BTD', (3, 5, 7), {'data': 2, 'fsdp': 2}, ()),
        ('DNH', (6, 4, 8), {'fsdp': 2, 'tensor': 4}, ('fsdp', 'tensor')),
        ('DNH', (6, 3, 8), {'fsdp': 2, 'tensor': 4}, ('fsdp',)),
        ('DE', (4, 4), {'fsdp': 2}, ('fsdp',)),  # an axis of the mesh is used once
        ('.D', (8, 4), {'fsdp': 2, 'tensor': 2}, (None, 'fsdp')),
        ('DV', (4, 8), {'tensor': 1, 'data': 4}, ()),
    ],
)
def test_letters_are_divided_where_the_mesh_divides_their_size(letters, shape, axes, expected):
    assert spec(letters, shape, mesh(**axes)) == PartitionSpec(*expected)


def test_arrays_and_shapes_know_their_mesh_and_constants_do_not():
    place = NamedSharding(mesh(data=2), PartitionSpec('data'))
    shape = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=place)
    assert mesh_of(np.zeros(3), {'a': shape}) == place.mesh
    assert mesh_of(jnp.zeros(3)) is None

    @jax.jit
    def traced(x):
        assert mesh_of(jnp.zeros(3)) is None
        assert dict(mesh_of(x + 1).shape) == {'data': 2}
        return x

    traced(jax.device_put(jnp.zeros(4), place))


def test_pin_states_the_sharding_of_letters_under_jit_only():
    x = put(jnp.ones((4, 3, 8)), '...', mesh(data=2, tensor=4))
    assert pin(x, 'BTF') is x
    pinned = jax.jit(lambda x: pin(x * 2, 'BTF'))(x)
    assert pinned.sharding.spec == PartitionSpec('data', None, 'tensor')
    assert jax.eval_shape(lambda x: jnp.zeros(shard_shape(x, 'BTF')), x).shape == (2, 3, 2)
    alone = jnp.ones(3)
    np.testing.assert_array_equal(jax.jit(lambda x: pin(x, 'B'))(alone), alone)


@pytest.mark.parametrize(
    'axes', [{'tensor': 4}, {'fsdp': 2}, {'data': 2, 'tensor': 2}, {'fsdp': 2, 'tensor': 4}]
)
@pytest.mark.parametrize('B', [1, 4])
def test_a_sum_over_a_divided_axis_is_complete_on_every_device(axes, B, rng):
    on = mesh(**axes)
    x, w = rng.normal(size=(B, 3, 8)).astype(np.float32), rng.normal(size=(8, 6)).astype(np.float32)
    product = partial(jnp.einsum, 'BTF,FD->BTD')
    run = jax.jit(per_device(product, 'BTF,FD->BTD'))
    y = run(put(x, 'BTF', on), put(w, 'FD', on))
    for shard in y.addressable_shards:
        np.testing.assert_allclose(shard.data, product(x, w)[shard.index], rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x, w: jnp.square(run(x, w)).sum(), argnums=(0, 1))
    expected = jax.grad(lambda x, w: jnp.square(product(x, w)).sum(), argnums=(0, 1))(x, w)
    for found, right in zip(gradient(put(x, 'BTF', on), put(w, 'FD', on)), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_attention_of_heads_that_are_divided_is_not_a_sum(rng):
    q, k = (rng.normal(size=(2, 3, 4, 5)).astype(np.float32) for _ in 'qk')
    on = mesh(data=2, tensor=4)
    run = jax.jit(per_device(lambda q, k: q * k.sum(axis=1, keepdims=True), 'BTNH,BSKH->BTNH'))
    np.testing.assert_allclose(
        run(put(q, 'BTNH', on), put(k, 'BSKH', on)), q * k.sum(axis=1, keepdims=True), rtol=1e-5
    )


def test_a_mesh_axis_takes_part_only_if_it_divides_all_that_it_shards(rng):
    q, k = jnp.ones((2, 3, 8, 4)), jnp.ones((2, 3, 2, 4))
    on = mesh(tensor=4)

    def shapes(q, k):
        assert (q.shape, k.shape) == ((2, 3, 8, 4), (2, 3, 2, 4))  # 4 does not divide the 2 heads of the keys
        return q

    jax.jit(per_device(shapes, 'BTNH,BSKH->BTNH'))(put(q, 'BTNH', on), put(k, 'BSKH', on))


def test_without_a_mesh_the_function_runs_as_it_is():
    assert per_device(lambda x: x.shape[0], 'B->B')(jnp.ones(3)) == 3
