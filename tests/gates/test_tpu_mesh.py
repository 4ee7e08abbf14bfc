"""Compiles the 7B and the 13B for meshes of TPU v5e, v5p and v6e, in the layouts that the compiler chooses.

Needs the wheel libtpu, which needs no TPU to compile.
"""

import dataclasses

import pytest

import vipllava_jax as vj
from tests.gates import program, training
from tests.gates.program import CFG
from tests.gates.test_tpu import BY_HAND, MEMORY
from vipllava_jax import placement, sharding

pytestmark = pytest.mark.gates
CFG_13B = dataclasses.replace(
    CFG, text=dataclasses.replace(CFG.text, width=5120, layers=40, heads=40, kv_heads=40, mlp=13824)
)
HBM = {chip.split(':')[0]: size * 2**30 * 0.9 for chip, size in MEMORY.items()}  # 10 % margin


def mesh_of(slice_: str, axes: dict[str, int]) -> sharding.Mesh:
    return sharding.make_mesh(axes, devices=program.devices_of('tpu', slice_))


def load(cfg: vj.Config, mesh: sharding.Mesh, quantize: str | None = None):
    """The shapes of the params, placed as `vj.load` does on TPUs."""
    params = placement.place_shapes(program.weights(cfg, quantize), cfg, mesh=mesh, fuse=False)
    decoder = params['llama']
    return {**params, 'llama': program.place(decoder, placement.formats(decoder, cfg))}


@pytest.mark.parametrize(
    ('slice_', 'axes', 'whole', 'B', 'quantize'),
    [
        pytest.param('v5e:2x2', {'tensor': 4}, CFG, 8, None, marks=BY_HAND),
        ('v6e:2x2', {'tensor': 4}, CFG, 8, None),
        ('v5e:4x4', {'data': 4, 'tensor': 4}, CFG_13B, 32, None),
        pytest.param('v5e:4x4', {'data': 2, 'tensor': 8}, CFG_13B, 16, None, marks=BY_HAND),
        pytest.param('v5e:4x4', {'data': 4, 'tensor': 4}, CFG_13B, 32, 'int8', marks=BY_HAND),
        ('v5p:2x2x1', {'tensor': 4}, CFG_13B, 8, None),
        pytest.param('v6e:2x2', {'tensor': 4}, CFG_13B, 8, None, marks=BY_HAND),
    ],
    ids=lambda value: f'{value.text.layers} layers' if isinstance(value, vj.Config) else str(value),
)
def test_decode(slice_, axes, whole, B, quantize):
    mesh = mesh_of(slice_, axes)
    # One program has all layers; the others compile faster.
    cfg = whole if slice_ == 'v5e:2x2' else program.with_layers(whole)
    params = load(cfg, mesh, quantize)
    compiled = program.decode(params, cfg, B, mesh)
    text, cache = compiled.as_text(), program.place_state(program.state(cfg, B), mesh).cache
    assert program.bytes_in_use(compiled, params, cfg, cache, whole) < HBM[slice_.split(':')[0]]
    donated = compiled.memory_analysis().alias_size_in_bytes
    assert donated >= program.size_in_bytes(cache)  # the caches are updated in place
    assert not program.copies(text)
    found = program.collectives(text)
    assert found == {'all-reduce': 2 * cfg.text.layers, 'all-gather': 1}


@BY_HAND
def test_prefill():
    mesh = mesh_of('v5e:4x4', {'data': 4, 'tensor': 4})
    cfg = program.with_layers(CFG_13B)
    params, cache = load(cfg, mesh), program.place_state(program.state(cfg, 32), mesh).cache
    compiled = program.prefill(params, cfg, 32, mesh)
    assert program.bytes_in_use(compiled, params, cfg, cache, CFG_13B) < HBM['v5e']
    assert not program.copied_weights(compiled.as_text(), params)


@BY_HAND
def test_the_cache_goes_from_prefill_to_decoding_without_a_copy():
    mesh = mesh_of('v5e:4x4', {'data': 4, 'tensor': 4})
    cfg = program.with_layers(CFG_13B, 2)
    params = load(cfg, mesh)
    written = program.prefill(params, cfg, 32, mesh).output_formats[0].cache
    read = program.decode(params, cfg, 32, mesh).input_formats[0][1].cache
    assert written == read


@BY_HAND
def test_a_training_step_of_the_7b_fits_four_chips():
    mesh = mesh_of('v5p:2x2x1', {'fsdp': 4})

    def size(layers: int) -> int:
        cfg = program.with_layers(CFG, layers)
        arguments = training.arguments(cfg, mesh, 16, 1024)
        memory = training.compile_step(cfg, arguments).memory_analysis()
        state = program.size_in_bytes(arguments[0])  # of each device
        assert memory.argument_size_in_bytes < state + 0.2e9  # the other arguments: the tower and the batch
        assert memory.alias_size_in_bytes > 0.999 * state  # the state is updated in place
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    few, more = size(2), size(6)
    assert more + (CFG.text.layers - 6) * (more - few) / 4 < HBM['v5p']
