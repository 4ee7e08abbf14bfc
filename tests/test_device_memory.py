"""The memory of a model on a mesh equals what its arrays take there, and a mesh is chosen by it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import VIP_LLAVA_7B, VIP_LLAVA_13B
from vipllava_jax.device_kinds import Fleet
from vipllava_jax.device_memory import (
    SLACK,
    abstract_mesh,
    activation_dtype,
    bytes_per_device,
    cache_bytes,
    choose_mesh,
    explain_mesh,
    plan_memory,
    working_bytes,
)
from vipllava_jax.generation.programs import prefill_batch
from vipllava_jax.generation.rows import place_rows
from vipllava_jax.generation.state import eos_rows
from vipllava_jax.model.llama import Cache
from vipllava_jax.model.params import abstract
from vipllava_jax.placement import place_shapes
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.sharding import make_mesh, sharding
from vipllava_jax.training import lora
from vipllava_jax.weight_sharding import leaf_sharding

GIB = 2**30
MESHES = [{'data': 1}, {'tensor': 2}, {'tensor': 2, 'data': 2}, {'fsdp': 2, 'tensor': 4}, {'tensor': 8}]


def weights(params, cfg, kind):
    if kind == 'lora':
        return lora.add(params, cfg, rank=4, alpha=8.0, key=jax.random.key(0))
    return nested(quantize_leaves(flat(params), kind))


def bytes_on(device, tree):
    """The bytes of the parts of arrays that a device holds."""
    shards = (shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.parametrize('axes', MESHES[2:4], ids=str)
@pytest.mark.parametrize('kind', [None, 'int8', 'int4', 'lora'])
def test_params_take_the_bytes_that_their_shapes_say(params, cfg, axes, kind):
    given = weights(params, cfg, kind)
    mesh = make_mesh(axes, devices=jax.devices()[: abstract_mesh(axes).size])
    leaves = [(path, jax.device_put(leaf, leaf_sharding(path, leaf, mesh))) for path, leaf in flat(given)]
    expected = {bytes_on(device, [leaf for _, leaf in leaves]) for device in mesh.devices.flat}
    assert expected == {bytes_per_device(given, mesh)}
    shapes = jax.eval_shape(lambda: given)
    assert bytes_per_device(shapes, abstract_mesh(axes)) == bytes_per_device(dict(flat(shapes)), mesh)


@pytest.mark.parametrize('axes', MESHES, ids=str)
@pytest.mark.parametrize('rows', [1, 6])
def test_a_cache_takes_the_bytes_that_its_shape_says(cfg, axes, rows):
    mesh = make_mesh(axes, devices=jax.devices()[: abstract_mesh(axes).size])
    parts = mesh.shape.get('data', 1) * mesh.shape.get('fsdp', 1)
    padded = -(-rows // parts) * parts
    empty = Cache.empty(cfg.text, padded, 256, jnp.bfloat16)
    placed = jax.tree.map(lambda x: jax.device_put(x, sharding('BSKH', x.shape, mesh)), empty)
    assert cache_bytes(cfg, 'bfloat16', rows, 200, mesh) == bytes_on(mesh.devices.flat[0], placed)


# as wide as the 7B, with few layers: the largest moment of prefill does not depend on their number
SHALLOW = dataclasses.replace(
    VIP_LLAVA_7B,
    vision=dataclasses.replace(VIP_LLAVA_7B.vision, layers=2),
    text=dataclasses.replace(VIP_LLAVA_7B.text, layers=2),
    feature_layers=(1, 1, 1, 0, 0),
    attention='xla',
)


@pytest.mark.slow
@pytest.mark.parametrize(('axes', 'lowest', 'highest'), [({'data': 4}, 0.8, 1.3), ({'tensor': 4}, 0.9, 1.6)])
def test_working_memory_is_close_to_what_the_compiler_allocates(axes, lowest, highest):
    from vipllava_jax.benchmark.subject import Subject

    mesh = make_mesh(axes, devices=jax.devices()[:4])
    shapes = place_shapes(abstract(SHALLOW), SHALLOW, mesh=mesh)
    batch = Subject({}, SHALLOW).prompt(8, 1024)
    rows, eos = place_rows((batch, eos_rows((), 8)), mesh)
    jax.config.update('jax_disable_most_optimizations', False)  # XLA then plans memory as for a user
    try:
        compiled = prefill_batch.lower(shapes, rows, None, eos, cfg=SHALLOW, slots=1024).compile()
    finally:
        jax.config.update('jax_disable_most_optimizations', True)
    ratio = working_bytes(SHALLOW, 'float32', 8, 1024, mesh) / compiled.memory_analysis().temp_size_in_bytes
    assert lowest < ratio < highest


def test_cudnn_keeps_no_scores():
    mesh = abstract_mesh({'data': 1})
    sizes = [working_bytes(VIP_LLAVA_7B, 'bfloat16', 1, 4096, mesh, fused_attention=f) for f in (False, True)]
    assert sizes[0] - sizes[1] > GIB


def test_fsdp_counts_the_gathered_weights():
    shapes = abstract(VIP_LLAVA_7B, 'bfloat16')
    plans = [plan_memory(VIP_LLAVA_7B, shapes, abstract_mesh({axis: 4}), None) for axis in ('fsdp', 'tensor')]
    assert plans[0].weights < plans[1].weights
    assert plans[0].working > 13 * GIB > plans[1].working
    assert plans[0].fits is None


def shapes_of(cfg, quantize=None):
    return dict(quantize_leaves(flat(abstract(cfg, 'bfloat16')), quantize))


def fleet(count, size, per_host=None, platform='tpu'):
    return Fleet(count, size and int(size * GIB), per_host or count, platform)


@pytest.mark.parametrize(
    ('cfg', 'quantize', 'devices', 'axes', 'reason'),
    [
        (VIP_LLAVA_7B, None, fleet(4, 79, platform='gpu'), {'data': 4}, 'data parallelism is for throughput'),
        (VIP_LLAVA_7B, None, fleet(1, 79, platform='gpu'), {'data': 1}, 'fits on the one device'),
        (VIP_LLAVA_7B, None, fleet(8, 15, 4), {'data': 4, 'tensor': 2}, 'needs 2 devices: on 1 it would'),
        (VIP_LLAVA_7B, 'int8', fleet(4, 15.75), {'data': 4}, 'fits on one device'),
        (
            VIP_LLAVA_13B,
            None,
            fleet(4, 15.75),
            {'data': 2, 'tensor': 2},
            'the 2 groups answer their own rows',
        ),
        (VIP_LLAVA_13B, None, fleet(3, 22), {'tensor': 2}, '1 of 3 devices are left over'),
        (VIP_LLAVA_13B, None, fleet(8, 8, 2), {'data': 2, 'tensor': 4}, 'spans hosts of 2 devices'),
        (VIP_LLAVA_7B, None, fleet(4, None), {'data': 4}, 'memory of the devices is not known'),
    ],
)
def test_the_mesh_has_the_fewest_tensor_devices_on_which_the_model_fits(cfg, quantize, devices, axes, reason):
    choice = explain_mesh(cfg, shapes_of(cfg, quantize), devices, batch=1, context=1024)
    assert choice.axes == axes
    assert reason in choice.reason
    assert choice.plan.memory is None or choice.plan.total <= choice.plan.memory * (1 - SLACK)


def test_tensor_divides_heads_and_mlp(cfg):
    # the tiny model has 2 key heads; on a host of 3 devices, one is left over
    size = plan_memory(cfg, abstract(cfg), abstract_mesh({'data': 1}), None).total / GIB
    choice = explain_mesh(cfg, abstract(cfg), fleet(3, size))
    assert choice.axes == {'tensor': 2}
    with pytest.raises(ValueError, match='over 1 of 3 devices'):  # over hosts, no device may be left over
        explain_mesh(cfg, abstract(cfg), fleet(3, size, per_host=1))


@pytest.mark.parametrize(
    ('quantize', 'advice', 'absent'),
    [
        (None, 'quantize to int8 or int4', 'xx'),
        ('int8', 'quantize to int4', 'int8 or'),
        ('int4', 'use more devices', 'quantize'),
    ],
)
def test_what_fits_on_no_mesh_is_an_error_that_says_what_would(quantize, advice, absent):
    with pytest.raises(ValueError, match='have 1.00 GiB') as error:
        explain_mesh(VIP_LLAVA_7B, shapes_of(VIP_LLAVA_7B, quantize), fleet(2, 1), batch=64)
    assert advice in str(error.value)
    assert absent not in str(error.value)
    assert 'use a shorter context or a smaller batch' in str(error.value)
    assert str(error.value).isprintable()


def test_the_devices_of_this_machine_are_the_default(params, cfg):
    assert choose_mesh(cfg, params) == {'data': len(jax.devices())}
    assert choose_mesh(cfg, params, jax.devices()[:2]) == {'data': 2}


def test_the_dtype_of_activations_is_that_of_weights_that_are_never_quantized(params):
    assert activation_dtype(dict(quantize_leaves(flat(params), 'int4'))) == jnp.float32
