"""Training on a mesh of devices: the same numbers as on one device, and a part of the state on each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rows import examples, ragged, stack
from tests.training.optimizers import optimizer
from vipllava_jax.arrays import flat, nested
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.sharding import make_mesh
from vipllava_jax.training import lora
from vipllava_jax.training.checkpoints import open_checkpoints
from vipllava_jax.training.parts import split
from vipllava_jax.training.shardings import process_rows, put_batch, put_quantized, state_shardings
from vipllava_jax.training.step import init_state, make_step
from vipllava_jax.weight_sharding import leaf_sharding

KEY = jax.random.key(7)
ROWS = [(9, 2), (15, 1), (6, 0), (8, 1)]
SGD = dict(warmup=0, optimizer='sgd', schedule='constant')  # updates are proportional to gradients


def mesh_of(**axes):
    return make_mesh(axes, devices=jax.devices()) if axes else None


def put(path, w, mesh):
    if isinstance(w, Quantized):
        return put_quantized(path, w, mesh)
    return jax.device_put(w, leaf_sharding(path, w, mesh))


def steps(cfg, params, rng, mesh, *, rows=8, recipe='finetune', quantize=None, count=3, **settings):
    """Takes steps -> the state, the losses and norms of the gradient, and the function of the step."""
    trains = {'projector', 'lora' if recipe == 'lora' else 'llama'}
    params = dict(quantize_leaves(flat(params), quantize))
    if mesh is not None:
        params = {path: put(path, w, mesh) for path, w in params.items()}
    params = nested(params.items())
    if recipe == 'lora':
        params = lora.add(params, cfg, rank=4, alpha=8, key=jax.random.key(1), dropout=0.2)
    trainable, frozen = split(params, trains)
    chosen = optimizer(1e-2, 10, **{**SGD, **settings})
    state = init_state(jax.tree.map(jnp.copy, trainable), chosen, mesh=mesh)
    if mesh is None:
        state = jax.device_put(state, jax.devices()[0])
    take = make_step(
        cfg,
        chosen,
        remat='layers',
        dtype=jnp.float32,
        apply_dropout=lora.with_dropout if recipe == 'lora' else None,
        shardings=state_shardings(state, mesh) if mesh else None,
    )
    chosen_rows = (ROWS * 4)[:rows]
    batches = [examples(ragged(cfg, rng, part), cfg) for part in (chosen_rows, chosen_rows[::-1])]
    numbers = []
    for _ in range(count):
        state, metrics = take(state, frozen, put_batch(stack(batches), mesh), KEY)
        numbers.append([float(metrics.loss), float(metrics.grad_norm)])
    return state, np.array(numbers), take


def check_same(cfg, params, axes, **settings):
    """Checks that three steps on a mesh are those on one device: losses, gradients and weights."""
    one, expected, _ = steps(cfg, params, np.random.default_rng(0), None, **settings)
    state, numbers, take = steps(cfg, params, np.random.default_rng(0), mesh_of(**axes), **settings)
    np.testing.assert_allclose(numbers, expected, rtol=1e-5)
    for (path, a), (_, b) in zip(flat(one.params), flat(state.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5, err_msg=path)
    assert take._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    'axes',
    [
        dict(fsdp=4),
        dict(data=2, fsdp=2, tensor=2),
        *(
            pytest.param(axes, marks=pytest.mark.by_hand)
            for axes in (
                dict(tensor=4),  # divides neither heads nor keys
                dict(tensor=2),
                dict(fsdp=2),
                dict(fsdp=8),
                dict(data=2),
                dict(data=4, tensor=2),
                dict(data=2, fsdp=4),
            )
        ),
    ],
    ids=str,
)
def test_a_mesh_trains_as_one_device(cfg, params, axes):
    check_same(cfg, params, axes)


@pytest.mark.by_hand
def test_sizes_that_do_not_divide_stay_whole(cfg, params):
    check_same(cfg, params, dict(fsdp=5), rows=5)


@pytest.mark.parametrize(
    ('axes', 'quantize'),
    [
        pytest.param(dict(fsdp=2, tensor=2), 'int8', marks=pytest.mark.slow),
        *(
            pytest.param(axes, quantize, marks=pytest.mark.by_hand)
            for axes, quantize in (
                (dict(fsdp=4), None),
                (dict(fsdp=4), 'int4'),
                (dict(data=2), None),
                (dict(data=2), 'int8'),
                (dict(fsdp=4), 'int8'),
                (dict(fsdp=2, tensor=2), 'int4'),
            )
        ),
    ],
    ids=str,
)
def test_adapters_train_as_on_one_device(cfg, params, axes, quantize):
    """With dropout, whose random numbers do not depend on the mesh."""
    check_same(cfg, params, axes, recipe='lora', quantize=quantize)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('adafactor', marks=pytest.mark.slow),
        pytest.param('adamw', marks=pytest.mark.by_hand),
        pytest.param('lion', marks=pytest.mark.by_hand),
    ],
)
def test_every_optimizer_updates_as_on_one_device(cfg, params, name):
    one, expected, _ = steps(cfg, params, np.random.default_rng(0), None, optimizer=name)
    state, numbers, _ = steps(
        cfg, params, np.random.default_rng(0), mesh_of(fsdp=2, tensor=2), optimizer=name
    )
    np.testing.assert_allclose(numbers, expected, rtol=1e-4)
    assert jax.tree.structure(state) == jax.tree.structure(one)


@pytest.mark.slow
def test_every_device_holds_its_part_of_the_state_and_little_else(cfg, params):
    mesh = mesh_of(fsdp=4)
    placed = nested((path, jax.device_put(w, leaf_sharding(path, w, mesh))) for path, w in flat(params))
    trainable, frozen = split(placed, {'projector', 'llama'})
    adamw = optimizer(1e-2, 10)
    state = init_state(trainable, adamw, mesh=mesh)
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    for device in mesh.devices.flat:
        shards = [s.data for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device == device]
        assert sum(x.nbytes for x in shards) < 1.01 * total / 4 + 1000
    take = make_step(cfg, adamw, dtype=jnp.float32, shardings=state_shardings(state, mesh))
    batch = put_batch(stack([examples(ragged(cfg, np.random.default_rng(0), ROWS), cfg)]), mesh)
    memory = take.lower(state, frozen, batch, KEY).compile().memory_analysis()
    held = sum(x.nbytes for x in jax.tree.leaves((frozen, batch)))
    assert memory.argument_size_in_bytes < 1.01 * (total + held) / 4 + 8000  # of one device
    assert memory.alias_size_in_bytes > 0.99 * total / 4  # the state is updated in place


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'adafactor'])
def test_moments_lie_like_their_weights(cfg, params, name):
    mesh = mesh_of(fsdp=2, tensor=2)
    params = nested((path, jax.device_put(w, leaf_sharding(path, w, mesh))) for path, w in flat(params))
    adapted = lora.add(params, cfg, rank=4, alpha=8, key=KEY)
    trainable, _ = split(adapted, {'projector', 'lora'})
    state = init_state(trainable, optimizer(1e-2, 10, optimizer=name), mesh=mesh)
    a, b = (state.params['llama']['layers_0']['q']['w'][name] for name in 'ab')
    assert a.sharding.spec == jax.P('fsdp')
    assert b.sharding.spec == jax.P(None, 'tensor')
    by_shape = {}
    for w in jax.tree.leaves(state.params):
        by_shape.setdefault(w.shape, set()).add(w.sharding.spec)
    for x in jax.tree.leaves(state.optimizer):
        assert x.sharding.spec in by_shape.get(x.shape, {jax.P()}) or name == 'adafactor'
    assert state.step.sharding.is_fully_replicated


@pytest.mark.slow
def test_a_state_is_restored_on_another_mesh_bit_by_bit(cfg, params, tmp_path):
    """From four devices to two by two, to one, and back."""

    def shapes(mesh):
        trainable, _ = split(params, {'projector', 'llama'})
        if mesh is not None:
            trainable = nested(
                (path, jax.device_put(w, leaf_sharding(path, w, mesh))) for path, w in flat(trainable)
            )
        other = init_state(trainable, optimizer(1e-2, 10), mesh=mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), other)

    chain = [dict(fsdp=2, tensor=2), {}, dict(fsdp=4)]
    rng = np.random.default_rng(0)
    state, _, _ = steps(cfg, params, rng, mesh_of(fsdp=4), optimizer='adamw', count=1)
    expected = jax.tree.map(np.asarray, state)
    with open_checkpoints(tmp_path, 9) as checkpoints:
        for step, axes in enumerate(chain):
            checkpoints.save(step, state, None)
            checkpoints.wait()
            state = checkpoints.restore(step, shapes(mesh_of(**axes)))
            jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), expected)
            devices = 4 if axes else 1
            assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {devices}


def test_rows_are_divided_over_the_devices(cfg, rng):
    batches = stack([examples(ragged(cfg, rng, ROWS * 2), cfg)] * 3)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    placed = put_batch(batches, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, batches)
    assert {shard.data.shape[:2] for x in placed for shard in x.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(process_rows(8, mesh), np.arange(8))
    assert put_batch(batches, None) is batches
