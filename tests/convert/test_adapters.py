"""Adapters in files: as peft writes and reads them, as the authors do, and nothing that does not fit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from vipllava_convert import adapters, to_flax, to_torch
from vipllava_convert.table import arrange, leaves, reverse

import vipllava_jax as vj
from tests import peer
from tests.convert.files import write_bin
from tests.rows import ragged
from tests.training.test_lora import trained
from tests.trees import same
from vipllava_jax import checkpoint, loading
from vipllava_jax.arrays import flat, nested
from vipllava_jax.folders import CheckpointError
from vipllava_jax.loading import abstract, load
from vipllava_jax.model.weights import LoRA, Quantized
from vipllava_jax.training import lora

ROWS = [(9, 2), (6, 0), (15, 1)]
forward = jax.jit(vj.forward, static_argnames='cfg')
Q = 'base_model.model.model.language_model.layers.0.self_attn.q_proj'
SMALL = {'r': 2, 'lora_alpha': 6, 'peft_type': 'LORA'}


@pytest.fixture(scope='module')
def model(folder):
    """The converted model with an adapter that is not zero, and a projector that is not the folder's."""
    params, cfg, _ = load(folder, fuse=False)
    tuned = trained(params, cfg, rank=3, alpha=8, dropout=0.1)
    return {**tuned, 'projector': jax.tree.map(lambda w: w + 1, tuned['projector'])}, cfg


@pytest.fixture(scope='module')
def adapter(model, tmp_path_factory):
    """Its adapter and projector in files."""
    target = tmp_path_factory.mktemp('adapters') / 'adapter'
    adapters.save(target, *model, projector=True, base='somebody/model')
    return target


def forgetting(params):
    """The params without the dropout of their adapters, which only a training step has a use for."""
    return nested(
        (path, LoRA(w.base, w.a, w.b, w.scale) if isinstance(w, LoRA) else w) for path, w in flat(params)
    )


@pytest.mark.parametrize('kind', ['converted', 'torch'])
def test_what_is_saved_is_loaded(model, adapter, folder, source, kind):
    base = folder if kind == 'converted' else source
    params, _ = model
    found = load(base, adapter=adapter, merge=False, fuse=False)
    same(dict(flat(found.params)), dict(flat(forgetting(params))))
    assert {w.scale for _, w in flat(found.params) if isinstance(w, LoRA)} == {8 / 3}
    same(dict(flat(load(base, adapter=adapter, fuse=False).params)), dict(flat(lora.merge(params))))


def test_the_files_are_pefts(adapter, model):
    params, cfg = model
    tensors, config = (
        load_file(adapter / 'adapter_model.safetensors'),
        json.loads((adapter / 'adapter_config.json').read_text()),
    )
    stem = 'base_model.model.model.language_model.layers'
    names = {
        f'{stem}.{i}.{m}_proj.lora_{h}.weight'
        for i in range(cfg.text.layers)
        for h in 'AB'
        for m in (
            'self_attn.q',
            'self_attn.k',
            'self_attn.v',
            'self_attn.o',
            'mlp.gate',
            'mlp.up',
            'mlp.down',
        )
    }
    projector = 'base_model.model.model.multi_modal_projector.'
    names |= {
        f'{projector}{m}.{w}'
        for m in ('projector_layernorm', 'linear_1', 'linear_2')
        for w in ('weight', 'bias')
    }
    assert tensors.keys() == names
    o = params['llama']['layers_1']['o']['w']
    np.testing.assert_array_equal(tensors[f'{stem}.1.self_attn.o_proj.lora_A.weight'], o.a.reshape(-1, 3).T)
    np.testing.assert_array_equal(tensors[f'{stem}.1.self_attn.o_proj.lora_B.weight'], o.b.T)
    np.testing.assert_array_equal(
        tensors[projector + 'linear_1.weight'], params['projector']['linear_1']['w'].T
    )
    assert config == {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': 'somebody/model',
        'r': 3,
        'lora_alpha': 8,
        'lora_dropout': 0.1,
        'bias': 'none',
        'inference_mode': True,
        'modules_to_save': ['multi_modal_projector'],
        'target_modules': r'.*language_model\.(model\.)?layers\.\d+\.'
        r'(mlp\.down_proj|mlp\.gate_proj|mlp\.up_proj|self_attn\.k_proj|self_attn\.o_proj|self_attn\.q_proj|self_attn\.v_proj)',
    }


@pytest.mark.parametrize(
    ('dtype', 'quantize', 'merge'),
    [(None, None, True), ('bfloat16', None, False), ('bfloat16', 'int8', True), (None, 'int8', False)],
)
def test_the_shapes_are_known_before_the_weights(folder, source, adapter, dtype, quantize, merge):
    for base in (folder, source):
        kind = dict(dtype=dtype, quantize=quantize, adapter=adapter, merge=merge, fuse=True)
        shapes, _ = abstract(base, **kind)
        params = load(base, **kind).params
        assert jax.tree.structure(shapes) == jax.tree.structure(params)
        for x, y in zip(jax.tree.leaves(shapes), jax.tree.leaves(params), strict=True):
            assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
        assert ('qkv' in params['llama']['layers_0']) == merge


def test_merged_and_then_quantised(model, adapter, source, tmp_path, rng):
    params, _ = model
    expected = nested(checkpoint.quantized(flat(lora.merge(params)), 'int8'))
    same(dict(flat(load(source, adapter=adapter, quantize='int8', fuse=False).params)), dict(flat(expected)))
    to_flax.convert(source, tmp_path / 'small', quantize='int8', adapter=adapter)
    same(dict(flat(load(tmp_path / 'small', fuse=False).params)), dict(flat(expected)))


def test_beside_weights_that_are_stored_in_int8_it_is_kept(model, adapter, source, tmp_path, rng):
    params, cfg = model
    to_flax.convert(source, tmp_path / 'small', quantize='int8')
    found = load(tmp_path / 'small', adapter=adapter).params
    w = found['llama']['layers_2']['down']['w']
    assert isinstance(w, LoRA)
    assert isinstance(w.base, Quantized)
    batch = ragged(cfg, rng, ROWS)
    inputs = dict(images=batch.images, image_counts=batch.image_counts, cfg=cfg)
    exact = forward(params, batch.tokens, **inputs)
    for near in (found, load(source, adapter=adapter, merge=False, quantize='int8').params):
        y = forward(near, batch.tokens, **inputs)
        assert 0 < jnp.linalg.norm(y - exact) < 0.03 * jnp.linalg.norm(exact)


def test_merging_rounds_once(folder, adapter, model):
    exact = dict(flat(lora.merge(model[0])))
    for path, w in flat(load(folder, dtype='bfloat16', adapter=adapter, fuse=False).params):
        np.testing.assert_array_equal(w, exact[path].astype(jnp.bfloat16))


def test_converting_merges_it_in_both_directions(folder, source, adapter, model, tmp_path):
    expected = dict(flat(lora.merge(model[0])))
    to_flax.convert(source, tmp_path / 'ours', adapter=adapter)
    to_torch.export(folder, tmp_path / 'theirs', adapter=adapter)
    for made in ('ours', 'theirs'):
        same(dict(flat(load(tmp_path / made, fuse=False).params)), expected)


def test_params_with_an_adapter_are_no_checkpoint(model, tmp_path):
    with pytest.raises(CheckpointError, match='have an adapter: merge it, or save it by itself'):
        checkpoint.save(tmp_path / 'model', *model)


def test_adapters_that_no_config_describes(model, tmp_path):
    params, cfg = model
    with pytest.raises(ValueError, match='one rank, scale and dropout expected, found none'):
        adapters.save(tmp_path / 'a', lora.merge(params), cfg)
    w = params['llama']['layers_0']['q']['w']
    odd = dict(flat(params)) | {'llama/layers_0/q/w': w.replace(scale=1.0)}
    with pytest.raises(ValueError, match='found rank 3 scale 1, rank 3 scale 2.66667'):
        adapters.save(tmp_path / 'a', nested(odd.items()), cfg)
    odd = dict(flat(params)) | {'llama/head/w': LoRA(params['llama']['head']['w'], w.a, w.b, 8 / 3)}
    with pytest.raises(ValueError, match="llama/head/w: only adapters of the decoder's layers"):
        adapters.save(tmp_path / 'a', nested(odd.items()), cfg)
    assert not (tmp_path / 'a').exists()


def test_a_place_that_is_taken(model, adapter, tmp_path):
    place = shutil.copytree(adapter, tmp_path / 'taken')
    with pytest.raises(CheckpointError, match='exists; choose another place'):
        adapters.save(place, *model)
    adapters.save(place, *model, overwrite=True)
    assert (
        len(load_file(place / 'adapter_model.safetensors'))
        == len(load_file(adapter / 'adapter_model.safetensors')) - 6
    )


# What peft calls the modules of transformers' models, of two eras, and of the authors'.
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


def pair(name: str, out: int, into: int, rng, rank: int = 2, own: str = '') -> dict[str, np.ndarray]:
    """Both halves of an adapter by peft's names."""
    halves = {'A': (rank, into), 'B': (out, rank)}
    return {f'{name}.lora_{h}{own}.weight': np.float32(rng.standard_normal(s)) for h, s in halves.items()}


def write(folder, tensors: dict[str, np.ndarray], kind: str = 'safetensors', **fields) -> None:
    folder.mkdir(exist_ok=True)
    (write_bin if kind == 'bin' else lambda path, x: save_file(x, path))(
        folder / f'adapter_model.{kind}', tensors
    )
    (folder / 'adapter_config.json').write_text(json.dumps({**SMALL, **fields}))


@pytest.mark.parametrize('own', ['', '.default'])
@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
@pytest.mark.parametrize('tree', TREES)
def test_every_tree_of_names(folder, tmp_path, rng, tree, kind, own):
    text, vision, bridge = TREES[tree]
    params, cfg, _ = load(folder, fuse=False)
    linears = {
        'llama/layers_1/q/w': pair(f'{text}layers.1.self_attn.q_proj', 48, 48, rng, own=own),
        'llama/layers_2/o/w': pair(f'{text}layers.2.self_attn.o_proj', 48, 48, rng, own=own),
        'llama/layers_0/down/w': pair(f'{text}layers.0.mlp.down_proj', 48, 56, rng, own=own),
        'clip/layers_3/up/w': pair(f'{vision}encoder.layers.3.mlp.fc1', 40, 32, rng, own=own),
        'projector/linear_1/w': pair(bridge, 48, 160, rng, own=own),
    }
    write(tmp_path / 'a', {k: v for both in linears.values() for k, v in both.items()}, kind)
    found, before = dict(flat(load(folder, adapter=tmp_path / 'a', fuse=False).params)), dict(flat(params))
    rows = {leaf.path: leaf for leaf in leaves(cfg)}
    for path, w in found.items():
        a, b = linears.get(path, {'': 0, '0': 0}).values()
        row = rows[path]
        old, new = (arrange(np.asarray(x), reverse(row.layout), dict(row.sizes)) for x in (before[path], w))
        np.testing.assert_allclose(new, old + 3 * (b @ a if path in linears else 0), atol=1e-5)


def test_the_authors_projector_and_what_they_leave_beside_it(folder, tmp_path, rng):
    params, _, _ = load(folder, fuse=False)
    stem = 'base_model.model.model.mm_projector.'
    names = {
        'clip_layernorm.weight': (160,),
        'clip_layernorm.bias': (160,),
        'final_linear.0.weight': (48, 160),
        'final_linear.0.bias': (48,),
        'final_linear.2.weight': (48, 48),
        'final_linear.2.bias': (48,),
    }
    tensors = {stem + name: np.float16(rng.standard_normal(shape)) for name, shape in names.items()}
    beside = {
        'base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq': np.float32(rng.standard_normal(4))
    }
    write(tmp_path / 'a', pair('base_model.model.model.layers.0.mlp.up_proj', 56, 48, rng), 'bin')
    write_bin(tmp_path / 'a' / 'non_lora_trainables.bin', tensors | beside)
    found = load(folder, adapter=tmp_path / 'a').params['projector']
    np.testing.assert_array_equal(found['norm']['w'], np.float32(tensors[stem + 'clip_layernorm.weight']))
    np.testing.assert_array_equal(
        found['linear_1']['w'], np.float32(tensors[stem + 'final_linear.0.weight']).T
    )
    np.testing.assert_array_equal(found['linear_2']['b'], np.float32(tensors[stem + 'final_linear.2.bias']))
    (tmp_path / 'b').mkdir()  # of stage 1, which trains nothing else
    write_bin(
        tmp_path / 'b' / 'mm_projector.bin',
        {k.removeprefix('base_model.model.'): v for k, v in tensors.items()},
    )
    alone = load(folder, adapter=tmp_path / 'b', fuse=False).params
    same(alone['projector'], found)
    same(dict(flat(alone['llama'])), dict(flat(params['llama'])))


def test_a_head_as_peft_has_it_both_whole_and_with_an_adapter(folder, tmp_path, rng):
    params, cfg, _ = load(folder)
    stem = 'base_model.model.lm_head'
    tensors = pair(stem, 400, 48, rng) | {
        f'{stem}.base_layer.weight': np.float32(rng.standard_normal((400, 48)))
    }
    write(tmp_path / 'a', tensors)
    whole, a, b = (tensors[f'{stem}.{n}.weight'] for n in ('base_layer', 'lora_A', 'lora_B'))
    merged, kept = (load(folder, adapter=tmp_path / 'a', merge=merge).params for merge in (True, False))
    np.testing.assert_allclose(merged['llama']['head']['w'].T, whole + 3 * b @ a, atol=1e-5)
    tokens = rng.integers(3, cfg.image_token, (2, 9))
    y = forward(merged, tokens, cfg=cfg)
    np.testing.assert_allclose(forward(kept, tokens, cfg=cfg), y, atol=1e-4)
    assert jnp.abs(y - forward(params, tokens, cfg=cfg)).max() > 0.1


def test_on_a_tpu_adapters_of_every_kind_are_kept(folder, tmp_path, rng, monkeypatch):
    """One layer's formats are every layer's there, but an adapter need not be on every layer."""
    write(tmp_path / 'a', pair(Q, 48, 48, rng))
    expected = load(folder, adapter=tmp_path / 'a', merge=False, fuse=False).params
    monkeypatch.setattr(loading, '_on', lambda backend: backend == 'tpu')
    same(load(folder, adapter=tmp_path / 'a', merge=False).params, expected)
    load(folder, adapter=tmp_path / 'a')


def test_patterns_and_scales(folder, cfg, tmp_path, rng):
    stem = 'base_model.model.model.language_model.layers.'
    tensors = {}
    for i, rank in enumerate((2, 4, 2)):
        tensors |= pair(f'{stem}{i}.self_attn.q_proj', 48, 48, rng, rank) | pair(
            f'{stem}{i}.mlp.up_proj', 56, 48, rng
        )
    fields = dict(
        rank_pattern={'layers.1.self_attn.q_proj': 4}, alpha_pattern={'up_proj': 1, r'.*\.2\..*q_proj': 5}
    )
    for rslora, root in ((False, 1), (True, 0.5)):
        write(tmp_path / 'a', tensors, use_rslora=rslora, **fields)
        found = load(folder, adapter=tmp_path / 'a', merge=False, fuse=False).params['llama']
        scales = [found[f'layers_{i}'][name]['w'].scale for name in ('q', 'up') for i in range(3)]
        np.testing.assert_allclose(scales, [6 / 2**root, 6 / 4**root, 5 / 2**root] + [1 / 2**root] * 3)


def message(folder, adapter) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder, adapter=adapter)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_all_that_does_not_fit_is_told_at_once(folder, tmp_path, rng):
    tensors = {}
    for i in range(5):  # two layers more than there are
        tensors |= pair(f'base_model.model.model.language_model.layers.{i}.self_attn.v_proj', 16, 64, rng)
    tensors |= pair(f'{Q}', 48, 48, rng, rank=4)
    tensors |= {f'{Q.replace("q_proj", "k_proj")}.lora_A.weight': np.zeros((2, 48), np.float32)}
    tensors |= {f'{Q}.lora_magnitude_vector': np.zeros(48, np.float32)}
    tensors |= pair('base_model.model.model.language_model.embed_tokens', 400, 48, rng)
    write(tmp_path / 'a', tensors, base_model_name_or_path='somebody/13b')
    told = message(folder, tmp_path / 'a')
    stem = 'base_model.model.model.language_model'
    for part in (
        f'{tmp_path / "a"}: not an adapter of this model. ',
        f'{stem}.layers.{{0-2}}.self_attn.v_proj.lora_A.weight [2, 64] instead of [2, 48]',
        f'{Q}.lora_A.weight [4, 48] instead of [2, 48]',
        f'{Q}.lora_B.weight [48, 4] instead of [48, 2]',
        f'without its other half: {stem}.layers.0.self_attn.k_proj.lora_A.weight',
        f'{stem}.layers.{{3-4}}.self_attn.v_proj.lora_B.weight',
        'of nothing that the model has: ',
        f'{stem}.embed_tokens.lora_A.weight',
        f'{Q}.lora_magnitude_vector',
        'Give the model that it was made for, somebody/13b says adapter_config.json, or train it anew',
    ):
        assert part in told, part
    assert f'{stem}.layers.{{0-2}}.self_attn.v_proj.lora_B' not in told  # which fits


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ({'peft_type': 'IA3'}, "peft_type: 'IA3' is not supported, only 'LORA'"),
        ({'use_dora': True}, 'use_dora: True is not supported'),
        ({'init_lora_weights': 'pissa'}, "init_lora_weights: 'pissa' is not supported"),
        ({'r': 'many'}, "r: expected a whole number, found 'many'"),
        ({'lora_alpha': None, 'r': 4}, r'lora_A.weight \[2, 48\] instead of \[4, 48\]'),
        ({'rank_pattern': {'q_proj': -1}}, 'rank_pattern.q_proj: expected a positive number, found -1'),
        ({'rank_pattern': {'q_proj(': 1}}, r'rank_pattern.*q_proj\(.*: expected a regular expression'),
        ({'alpha_pattern': []}, r'alpha_pattern: expected an object, found \[\]'),
    ],
)
def test_a_config_that_does_not_do(folder, tmp_path, rng, fields, told):
    write(tmp_path / 'a', pair(Q, 48, 48, rng), **fields)
    with pytest.raises(CheckpointError, match=told):
        load(folder, adapter=tmp_path / 'a')


def test_files_that_are_missing_or_broken(folder, adapter, tmp_path, rng):
    assert message(folder, tmp_path / 'x') == (
        f'{tmp_path / "x"}: no adapter: looked for adapter_model.safetensors, adapter_model.bin, '
        'non_lora_trainables.bin, mm_projector.bin, found no such folder'
    )
    assert 'found config.json' in message(folder, folder)
    assert 'found config.json' in message(folder, str(folder))
    copy = shutil.copytree(adapter, tmp_path / 'copy')
    file = copy / 'adapter_model.safetensors'
    file.write_bytes(file.read_bytes()[:-9])
    assert f'{file}: truncated' in message(folder, copy)
    (copy / 'adapter_config.json').unlink()
    assert f'{copy / "adapter_config.json"}: cannot be read' in message(folder, copy)
    write(
        tmp_path / 'a',
        {
            f'{Q}.lora_A.weight': np.zeros((2, 48), np.int8),
            f'{Q}.lora_B.weight': np.zeros((48, 2), np.float32),
        },
    )
    assert f'of a type other than float32, float16, bfloat16: {Q}.lora_A.weight (int8)' in message(
        folder, tmp_path / 'a'
    )
    twice = pair(Q, 48, 48, rng) | pair(
        Q.replace('model.language_model.', 'language_model.model.'), 48, 48, rng
    )
    write(tmp_path / 'a', twice)
    assert 'stored twice: ' in message(folder, tmp_path / 'a')


class TestPeer:
    """The same files on transformers' model, by torch alone: W + scale * B A."""

    @pytest.fixture(scope='class')
    @staticmethod
    def theirs(cfg, tmp_path_factory):
        theirs = peer.model(cfg)
        folder = tmp_path_factory.mktemp('peer') / 'base'
        theirs.save_pretrained(folder)
        return theirs, folder

    @pytest.mark.parity
    def test_what_we_save_they_read(self, theirs, tmp_path, rng):
        import re

        import torch

        theirs, base = theirs
        params, cfg, _ = load(base, fuse=False)
        adapted = trained(params, cfg, rank=3, alpha=8)
        adapters.save(tmp_path / 'a', adapted, cfg)
        config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
        tensors = load_file(tmp_path / 'a' / 'adapter_model.safetensors')
        wanted = {name for name, _ in theirs.named_modules() if re.fullmatch(config['target_modules'], name)}
        assert {name.removeprefix('base_model.model.').rsplit('.', 2)[0] for name in tensors} == wanted
        assert len(wanted) == 7 * cfg.text.layers
        batch = ragged(cfg, rng, ROWS)
        real = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        before = {name: theirs.get_submodule(name).weight.detach().clone() for name in wanted}
        with torch.no_grad():
            for name in wanted:
                a, b = (torch.tensor(tensors[f'base_model.model.{name}.lora_{h}.weight']) for h in 'AB')
                theirs.get_submodule(name).weight += config['lora_alpha'] / config['r'] * b @ a
            expected = peer.run(theirs, batch).logits.numpy()
            for name, w in before.items():
                theirs.get_submodule(name).weight.copy_(w)
        for model in (adapted, load(base, adapter=tmp_path / 'a').params):
            y = forward(model, batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg)
            np.testing.assert_allclose(y[real], expected[real], atol=1e-4)
        assert np.abs(expected - peer.run(theirs, batch).logits.numpy())[real].max() > 0.1
