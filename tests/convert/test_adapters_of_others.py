"""Adapters in files by peft or the authors: their names, scales and additional files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.convert.files import pair, write_adapter, write_bin
from tests.trees import same
from vipllava_jax.arrays import flat
from vipllava_jax.convert.table import leaves, rearrange_axes, reverse_layout
from vipllava_jax.loading import load

forward = jax.jit(vj.forward, static_argnames='cfg')

# peft's prefixes of modules in the models of transformers, in old and new versions, and of the authors.
TREES = {
    'transformers 5': (
        'base_model.model.model.language_model.',
        'base_model.model.model.vision_tower.',
        'base_model.model.model.multi_modal_projector.linear_1',
    ),
    'transformers 4.40': (
        'base_model.model.language_model.model.',
        'base_model.model.vision_tower.vision_model.',
        'base_model.model.multi_modal_projector.linear_1',
    ),
    'the authors': (
        'base_model.model.model.',
        'base_model.model.model.vision_tower.vision_tower.vision_model.',
        'base_model.model.model.mm_projector.final_linear.0',
    ),
}


@pytest.mark.parametrize('suffix', ['', '.default'])
@pytest.mark.parametrize('file_format', ['safetensors', 'bin'])
@pytest.mark.parametrize('tree', TREES)
def test_every_tree_of_names(folder, tmp_path, rng, tree, file_format, suffix):
    text, vision, bridge = TREES[tree]
    params, cfg, *_ = load(folder, fuse=False)
    linears = {
        'llama/layers_1/q/w': pair(f'{text}layers.1.self_attn.q_proj', 48, 48, rng, suffix=suffix),
        'llama/layers_1/o/w': pair(f'{text}layers.1.self_attn.o_proj', 48, 48, rng, suffix=suffix),
        'llama/layers_0/down/w': pair(f'{text}layers.0.mlp.down_proj', 48, 56, rng, suffix=suffix),
        'clip/layers_2/up/w': pair(f'{vision}encoder.layers.2.mlp.fc1', 40, 32, rng, suffix=suffix),
        'projector/linear_1/w': pair(bridge, 48, 96, rng, suffix=suffix),
    }
    write_adapter(tmp_path / 'a', {k: v for both in linears.values() for k, v in both.items()}, file_format)
    found, before = dict(flat(load(folder, adapter=tmp_path / 'a', fuse=False).params)), dict(flat(params))
    rows = {leaf.path: leaf for leaf in leaves(cfg)}
    for path, w in found.items():
        a, b = linears.get(path, {'': 0, '0': 0}).values()
        row = rows[path]
        old, new = (
            rearrange_axes(np.asarray(x), reverse_layout(row.layout), dict(row.sizes))
            for x in (before[path], w)
        )
        np.testing.assert_allclose(new, old + 3 * (b @ a if path in linears else 0), atol=1e-5)


def test_the_files_of_the_authors_training_are_read(folder, tmp_path, rng):
    params, _, *_ = load(folder, fuse=False)
    stem = 'base_model.model.model.mm_projector.'
    names = {
        'clip_layernorm.weight': (96,),
        'clip_layernorm.bias': (96,),
        'final_linear.0.weight': (48, 96),
        'final_linear.0.bias': (48,),
        'final_linear.2.weight': (48, 48),
        'final_linear.2.bias': (48,),
    }
    tensors = {stem + name: np.float16(rng.standard_normal(shape)) for name, shape in names.items()}
    unused = {
        'base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq': np.float32(rng.standard_normal(4))
    }
    write_adapter(tmp_path / 'a', pair('base_model.model.model.layers.0.mlp.up_proj', 56, 48, rng), 'bin')
    write_bin(tmp_path / 'a' / 'non_lora_trainables.bin', tensors | unused)
    found = load(folder, adapter=tmp_path / 'a').params['projector']
    np.testing.assert_array_equal(found['norm']['w'], np.float32(tensors[stem + 'clip_layernorm.weight']))
    np.testing.assert_array_equal(
        found['linear_1']['w'], np.float32(tensors[stem + 'final_linear.0.weight']).T
    )
    np.testing.assert_array_equal(found['linear_2']['b'], np.float32(tensors[stem + 'final_linear.2.bias']))
    (tmp_path / 'b').mkdir()  # as after stage 1, which trains only the projector
    write_bin(
        tmp_path / 'b' / 'mm_projector.bin',
        {k.removeprefix('base_model.model.'): v for k, v in tensors.items()},
    )
    alone = load(folder, adapter=tmp_path / 'b', fuse=False).params
    same(alone['projector'], found)
    same(dict(flat(alone['llama'])), dict(flat(params['llama'])))


def test_a_head_with_a_replacement_and_an_adapter(folder, tmp_path, rng):
    params, cfg, *_ = load(folder)
    stem = 'base_model.model.lm_head'
    tensors = pair(stem, 400, 48, rng) | {
        f'{stem}.base_layer.weight': np.float32(rng.standard_normal((400, 48)))
    }
    write_adapter(tmp_path / 'a', tensors)
    base, a, b = (tensors[f'{stem}.{n}.weight'] for n in ('base_layer', 'lora_A', 'lora_B'))
    merged, kept = (load(folder, adapter=tmp_path / 'a', merge=merge).params for merge in (True, False))
    np.testing.assert_allclose(merged['llama']['head']['w'].T, base + 3 * b @ a, atol=1e-5)
    tokens = rng.integers(3, cfg.image_token, (2, 9))
    y = forward(merged, tokens, cfg=cfg)
    np.testing.assert_allclose(forward(kept, tokens, cfg=cfg), y, atol=1e-4)
    assert jnp.abs(y - forward(params, tokens, cfg=cfg)).max() > 0.1


def test_patterns_and_scales(folder, cfg, tmp_path, rng):
    stem = 'base_model.model.model.language_model.layers.'
    tensors = pair(f'{stem}0.self_attn.k_proj', 16, 48, rng)
    for i, rank in enumerate((2, 4)):
        tensors |= pair(f'{stem}{i}.self_attn.q_proj', 48, 48, rng, rank) | pair(
            f'{stem}{i}.mlp.up_proj', 56, 48, rng
        )
    fields = dict(
        rank_pattern={'layers.1.self_attn.q_proj': 4}, alpha_pattern={'up_proj': 1, r'.*\.0\..*q_proj': 5}
    )
    for rslora, root in ((False, 1), (True, 0.5)):
        write_adapter(tmp_path / 'a', tensors, use_rslora=rslora, **fields)
        found = load(folder, adapter=tmp_path / 'a', merge=False, fuse=False).params['llama']
        scales = [found[f'layers_{i}'][name]['w'].scale for name in ('q', 'up') for i in range(2)]
        np.testing.assert_allclose(scales, [5 / 2**root, 6 / 4**root] + [1 / 2**root] * 2)
        np.testing.assert_allclose(found['layers_0']['k']['w'].scale, 6 / 2**root)
