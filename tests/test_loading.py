"""`load` gives the same model, bit by bit, from every type of source."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from tests.trees import same
from tests.worlds import of_all_types, rows
from vipllava_jax import checkpoint, loading, placement
from vipllava_jax.arrays import size
from vipllava_jax.convert import to_flax
from vipllava_jax.convert.table import leaves
from vipllava_jax.evaluation import evaluate
from vipllava_jax.generation import decoding
from vipllava_jax.generation.decoding import generate
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.loading import WeightOptions, load
from vipllava_jax.messages import CheckpointError


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16', jnp.float32])
def test_loading_is_converting_and_restoring(folder, source, dtype):
    seen = []
    a = load(source, dtype=dtype, progress=lambda *told: seen.append(told))
    b = load(str(folder), dtype=dtype)
    assert a.cfg == b.cfg
    same(a.params, b.params)
    assert isinstance(a.processor, Processor)
    assert isinstance(b.processor, Processor)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(a.params))
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize(
    ('dtype', 'quantize', 'fuse'),
    [(None, None, False), ('bfloat16', None, True), ('float16', 'int8', False)]
    + [(None, kind, True) for kind in ('int8', 'int4')],
)
def test_the_shapes_are_known_before_the_weights(folder, source, dtype, quantize, fuse):
    def described(params):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), params)

    options = WeightOptions(dtype=dtype, quantize=quantize, fuse=fuse)
    for place in (folder, source):
        weights = loading.open(place, options)
        model = load(place, dtype=dtype, quantize=quantize, fuse=fuse)
        assert (described(weights.shapes()), weights.cfg) == (described(model.params), model.cfg)


@pytest.mark.parametrize('fuse', [False, True])
@pytest.mark.parametrize(
    ('kind', 'types'), [('int8', ('int8', 'float32')), ('int4', ('int32', 'bfloat16'))], ids=['int8', 'int4']
)
@pytest.mark.slow
def test_quantised_when_loaded_or_when_converted(source, folder, tmp_path, kind, types, fuse):
    """Values and scales are the same, and `dtype` only changes the other weights."""
    small = tmp_path / kind
    to_flax.convert(source, small, quantize=kind)
    for dtype in (None, 'bfloat16'):
        found = load(small, dtype=dtype, fuse=fuse).params
        same(found, load(source, dtype=dtype, quantize=kind, fuse=fuse).params)
        same(found, load(folder, dtype=dtype, quantize=kind, fuse=fuse).params)
        same(found, load(small, dtype=dtype, quantize=kind, fuse=fuse).params)
        o = found['llama']['layers_0']['o']['w']
        assert (o.dtype, o.values.dtype, o.scale.dtype) == (kind, *types)
        assert found['llama']['norm']['w'].dtype == (dtype or 'float32')
    assert size(checkpoint.open(small).leaves) < size(checkpoint.open(folder).leaves)


def test_an_unknown_way_to_quantise_is_named(folder):
    with pytest.raises(CheckpointError, match='int3: .* int8, int4'):
        load(folder, quantize='int3')


def test_the_settings_are_those_of_the_generation_config(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / 'copy')
    assert load(copy).settings == GenerationSettings()
    file = copy / 'generation_config.json'
    file.write_text(json.dumps({'do_sample': True, 'temperature': 0.2, 'top_p': 0.9, 'max_new_tokens': 7}))
    assert load(copy).settings == GenerationSettings(temperature=0.2, top_p=0.9, max_new_tokens=7)
    file.write_text(json.dumps({'top_k': 'many'}))
    with pytest.raises(CheckpointError, match=f'^{copy}: generation_config.json: top_k'):
        load(copy)


def test_without_a_tokenizer_there_is_no_processor(source, tmp_path):
    shutil.copytree(source, tmp_path / 'bare', ignore=shutil.ignore_patterns('token*'))
    assert load(tmp_path / 'bare').processor is None


def test_a_broken_processor_is_told_before_the_weights_are_read(source, tmp_path, monkeypatch):
    copy = shutil.copytree(source, tmp_path / 'copy')
    (copy / 'tokenizer.json').write_text('{')
    monkeypatch.setattr(to_flax, 'stream', None)
    with pytest.raises(ValueError, match=r'tokenizer\.json'):
        load(copy)


def test_the_published_7b_lies_about_its_features(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / 'copy')
    said = json.loads((copy / 'config.json').read_text())
    del said['vision_feature_layers']
    said |= {
        'vision_feature_layer': -2,
        'projector_layernorm': False,
        'vision_feature_select_strategy': 'default',
    }
    (copy / 'config.json').write_text(json.dumps(said))
    assert load(copy).cfg == load(source).cfg
    assert len(list(leaves(load(copy).cfg))) == len(jax.tree.leaves(load(copy).params))


def test_fused_weights_answer_the_same(folder):
    plain, fused = load(folder, fuse=False), load(folder, fuse=True)
    assert 'qkv' in fused.params['llama']['layers_0']
    batch = plain.processor('What is this?')
    answers = [generate(m.params, batch, cfg=m.cfg, max_new_tokens=9).tokens for m in (plain, fused)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.slow
def test_smaller_weights_mean_the_same(demo_model, tmp_path):
    """A trained model is mostly certain, so that rounding changes few of 16 answers."""
    asked = rows(tmp_path, of_all_types(1))

    def said(model):
        return [answer['answer'] for answer in evaluate(model, asked, images=tmp_path).answers]

    whole = said(demo_model)
    for smaller in ({'dtype': 'bfloat16'}, {'dtype': 'float32', 'quantize': 'int8'}):
        same = [a == b for a, b in zip(whole, said(load('demo', **smaller)), strict=True)]
        assert sum(same) >= 15, smaller


def test_on_a_tpu_the_compiler_lays_the_decoder_out(folder, monkeypatch):
    plain = load(folder).params

    def turned(llama, cfg):
        return jax.tree.map(lambda w: Format(Layout(tuple(reversed(range(w.ndim)))), w.sharding), llama)

    monkeypatch.setattr(placement, 'formats', turned)
    same(load(folder).params, plain)
    assert load(folder).params['llama']['head']['w'].format.layout.major_to_minor == (0, 1)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    params = load(folder).params
    same(params, plain)
    assert params['llama']['head']['w'].format.layout.major_to_minor == (1, 0)


@pytest.mark.parametrize('quantize', [None, 'int8'])
def test_on_a_tpu_what_is_compiled_for_the_shapes_is_what_runs(folder, monkeypatch, quantize):
    def turned(llama, cfg):
        def format(w):
            return Format(Layout(tuple(reversed(range(w.ndim))), tiling=()), w.sharding)

        return jax.tree.map(format, llama)

    monkeypatch.setattr(placement, 'formats', turned)
    monkeypatch.setattr(placement, '_on', lambda backend: backend == 'tpu')
    shapes = loading.open(folder, WeightOptions(quantize=quantize, fuse=True)).shapes()
    model = load(folder, quantize=quantize, fuse=True)
    laid_out = [
        [w.format.layout.major_to_minor for w in jax.tree.leaves(params['llama'])]
        for params in (shapes, model.params)
    ]
    assert laid_out[0] == laid_out[1]
    batch = model.processor('What is it?')
    settings = dict(cfg=model.cfg, max_new_tokens=150)
    compiled = []

    def listen(event, seconds, fun_name='', **_):
        if event.endswith('backend_compile_duration') and (
            'prefill_batch' in fun_name or 'decode_chunk' in fun_name
        ):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        decoding.compile_for(shapes, batch, **settings)
        assert len(compiled) == 2
        generate(model.params, batch, **settings)
        assert len(compiled) == 2
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
