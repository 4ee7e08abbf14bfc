"""The memory plan of a training run equals what its state takes on a mesh."""

import jax
import jax.numpy as jnp
import pytest

from tests.test_device_memory import bytes_on
from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import VIP_LLAVA_7B
from vipllava_jax.device_memory import abstract_mesh, bytes_per_device
from vipllava_jax.model.params import abstract
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.sharding import make_mesh
from vipllava_jax.training import lora
from vipllava_jax.training.memory import plan_training
from vipllava_jax.training.optimizer import Optimizer
from vipllava_jax.training.parts import split
from vipllava_jax.training.settings_file import read_settings
from vipllava_jax.training.step import init_state
from vipllava_jax.weight_sharding import leaf_sharding

MESHES = [
    *(pytest.param(axes, marks=pytest.mark.slow) for axes in ({'data': 2}, {'fsdp': 4})),
    {'fsdp': 2, 'tensor': 2},
]


def settings_of(recipe, **given):
    return read_settings(recipe=recipe, model='model', data=('rows',), output='run', steps=3, **given)


@pytest.mark.parametrize('axes', MESHES, ids=str)
@pytest.mark.parametrize(
    ('recipe', 'given'),
    [
        ('finetune', {'moment_dtype': 'bfloat16'}),
        ('projector', {}),
        ('lora', {'lora_rank': 4}),
        ('finetune', {'optimizer': 'lion', 'param_dtype': 'bfloat16'}),
    ],
)
def test_the_state_takes_the_bytes_of_the_plan(params, cfg, axes, recipe, given):
    settings = settings_of(recipe, dtype='float32', **given)
    mesh = make_mesh(axes, devices=jax.devices()[: abstract_mesh(axes).size])
    plan = plan_training(
        cfg, dict(flat(jax.eval_shape(lambda: params))), settings, abstract_mesh(axes), 1 << 40
    )
    placed = nested((path, jax.device_put(w, leaf_sharding(path, w, mesh))) for path, w in flat(params))
    if 'lora' in settings.trains:
        placed = lora.add(placed, cfg, rank=4, alpha=8.0, key=jax.random.key(0))
    trainable, frozen = split(placed, settings.trains)
    dtype = jnp.dtype(settings.param_dtype)
    state = init_state(jax.tree.map(lambda w: w.astype(dtype), trainable), Optimizer(settings), dtype, mesh)
    device = mesh.devices.flat[0]
    assert plan.trainable == bytes_on(device, state.params)
    assert plan.moments == bytes_on(device, state.optimizer)
    assert plan.frozen == bytes_on(device, frozen)
    assert plan.fits


def test_quantized_weights_are_frozen():
    shapes = dict(quantize_leaves(flat(abstract(VIP_LLAVA_7B, 'bfloat16')), 'int8'))
    mesh = abstract_mesh({'data': 4})
    plan = plan_training(VIP_LLAVA_7B, shapes, settings_of('lora', quantize='int8'), mesh, None)
    in_projector = {path: leaf for path, leaf in shapes.items() if path.startswith('projector')}
    assert plan.frozen == bytes_per_device(shapes, mesh) - bytes_per_device(in_projector, mesh)
    assert plan.fits is None


def test_the_7b_needs_several_gpus_for_full_training():
    shapes, settings = dict(flat(abstract(VIP_LLAVA_7B, 'bfloat16'))), settings_of('finetune', batch=8)
    sizes = []
    for axes in ({'fsdp': 1}, {'fsdp': 4}):
        plan = plan_training(VIP_LLAVA_7B, shapes, settings, abstract_mesh(axes), 75 << 30, 'gpu')
        sizes.append(plan)
    assert [plan.fits for plan in sizes] == [False, True]
    assert sizes[0].state == pytest.approx(12 * 6.79e9, rel=0.02)  # weights and two moments in float32


def test_recomputing_less_takes_more_memory():
    shapes, mesh = dict(flat(abstract(VIP_LLAVA_7B, 'bfloat16'))), abstract_mesh({'fsdp': 4})
    plans = [
        plan_training(VIP_LLAVA_7B, shapes, settings_of('finetune', remat=remat), mesh, None, 'gpu')
        for remat in ('layers', 'products', 'none')
    ]
    assert plans[0].working < plans[1].working < plans[2].working
