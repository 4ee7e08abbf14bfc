"""`load` gives the same model, bit by bit, from every type of source."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from tests.compilations import compilations
from tests.trees import same
from tests.worlds import of_all_types, rows
from vipllava_jax import checkpoint, loading, placement
from vipllava_jax.arrays import size
from vipllava_jax.config import Config
from vipllava_jax.convert import to_flax
from vipllava_jax.convert.table import leaves
from vipllava_jax.convert.to_torch import export
from vipllava_jax.evaluation import evaluate
from vipllava_jax.generation import decoding
from vipllava_jax.generation.decoding import generate
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.loading import WeightOptions, load
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.params import init


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16', jnp.float32])
def test_loading_is_converting_and_restoring(folder, source, dtype):
    seen = []
    a = load(source, dtype=dtype, progress=lambda *values: seen.append(values))
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
    + [(None, dtype, True) for dtype in ('int8', 'int4')],
)
def test_the_shapes_equal_those_of_the_loaded_params(folder, source, dtype, quantize, fuse):
    def described(params):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), params)

    options = WeightOptions(dtype=dtype, quantize=quantize, fuse=fuse)
    for place in (folder, source):
        weights = loading.open(place, options)
        model = load(place, dtype=dtype, quantize=quantize, fuse=fuse)
        assert (described(weights.shapes()), weights.cfg) == (described(model.params), model.cfg)


@pytest.mark.parametrize('fuse', [False, True])
@pytest.mark.parametrize(
    ('quantize', 'types'),
    [('int8', ('int8', 'float32')), ('int4', ('int32', 'bfloat16'))],
    ids=['int8', 'int4'],
)
@pytest.mark.slow
def test_quantizing_when_loading_equals_quantizing_when_converting(
    source, folder, tmp_path, quantize, types, fuse
):
    """Values and scales are the same, and `dtype` only changes the other weights."""
    small = tmp_path / quantize
    to_flax.convert(source, small, quantize=quantize)
    for dtype in (None, 'bfloat16'):
        found = load(small, dtype=dtype, fuse=fuse).params
        same(found, load(source, dtype=dtype, quantize=quantize, fuse=fuse).params)
        same(found, load(folder, dtype=dtype, quantize=quantize, fuse=fuse).params)
        same(found, load(small, dtype=dtype, quantize=quantize, fuse=fuse).params)
        o = found['llama']['layers_0']['o']['w']
        assert (o.dtype, o.values.dtype, o.scale.dtype) == (quantize, *types)
        assert found['llama']['norm']['w'].dtype == (dtype or 'float32')
    assert size(checkpoint.open(small).leaves) < size(checkpoint.open(folder).leaves)


def test_an_unknown_quantization_is_an_error(folder):
    with pytest.raises(CheckpointError, match='int3: .* int8, int4'):
        load(folder, quantize='int3')


def test_the_settings_are_those_of_the_generation_config(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / 'copy')
    assert load(copy).settings == GenerationSettings()
    file = copy / 'generation_config.json'
    file.write_text(json.dumps({'do_sample': True, 'temperature': 0.2, 'top_p': 0.9, 'max_new_tokens': 7}))
    assert load(copy).settings == GenerationSettings(temperature=0.2, top_p=0.9, max_new_tokens=7)
    file.write_text(json.dumps({'no_repeat_ngram_size': 3, 'num_beams': 2, 'guidance_scale': 2.0}))
    with pytest.warns(
        UserWarning, match=f'^{copy}: generation_config.json: guidance_scale is ignored'
    ) as found:
        assert load(copy).settings == GenerationSettings(no_repeat_ngram_size=3, num_beams=2)
    assert found[0].filename == __file__
    file.write_text(json.dumps({'top_k': 'many'}))
    with pytest.raises(CheckpointError, match=f'^{copy}: generation_config.json: top_k'):
        load(copy)


def test_without_a_tokenizer_there_is_no_processor(source, tmp_path):
    shutil.copytree(source, tmp_path / 'bare', ignore=shutil.ignore_patterns('token*'))
    assert load(tmp_path / 'bare').processor is None


def test_a_broken_processor_is_an_error_before_the_weights_are_read(source, tmp_path, monkeypatch):
    copy = shutil.copytree(source, tmp_path / 'copy')
    (copy / 'tokenizer.json').write_text('{')
    monkeypatch.setattr(to_flax, 'stream', None)
    with pytest.raises(ValueError, match=r'tokenizer\.json'):
        load(copy)


def test_the_feature_layers_of_the_published_7b_are_corrected(folder, tmp_path):
    cfg = load(folder).cfg
    vision = dataclasses.replace(cfg.vision, layers=12)
    cfg = dataclasses.replace(cfg, vision=vision, feature_layers=Config().feature_layers)
    checkpoint.save(tmp_path / 'converted', init(jax.random.key(0), cfg), cfg, files_from=folder)
    copy = tmp_path / 'copy'
    export(tmp_path / 'converted', copy)
    config = json.loads((copy / 'config.json').read_text())
    del config['vision_feature_layers']
    config |= {
        'vision_feature_layer': -2,
        'projector_layernorm': False,
        'vision_feature_select_strategy': 'default',
    }
    (copy / 'config.json').write_text(json.dumps(config))
    assert load(copy).cfg == cfg
    assert len(list(leaves(load(copy).cfg))) == len(jax.tree.leaves(load(copy).params))


def test_fused_weights_answer_the_same(folder):
    plain, fused = load(folder, fuse=False), load(folder, fuse=True)
    assert 'qkv' in fused.params['llama']['layers_0']
    batch = plain.processor('What is this?')
    answers = [generate(m.params, batch, cfg=m.cfg, max_new_tokens=9).tokens for m in (plain, fused)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.slow
def test_smaller_weights_give_nearly_the_same_answers(demo_model, tmp_path):
    """A trained model is mostly certain, so that rounding changes few of 16 answers."""
    questions = rows(tmp_path, of_all_types(1))

    def answers(model):
        return [answer['answer'] for answer in evaluate(model, questions, images=tmp_path).answers]

    expected = answers(demo_model)
    for smaller in ({'dtype': 'bfloat16'}, {'dtype': 'float32', 'quantize': 'int8'}):
        same = [a == b for a, b in zip(expected, answers(load('demo', **smaller)), strict=True)]
        assert sum(same) >= 15, smaller


def test_on_a_tpu_the_compiler_chooses_the_formats_of_the_decoder(folder, monkeypatch):
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
def test_on_a_tpu_the_programs_compiled_for_the_shapes_are_used(folder, monkeypatch, quantize):
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
    with compilations('prefill_batch|decode_chunk') as compiled:
        decoding.compile_for(shapes, batch, **settings)
        assert len(compiled) == 2
        generate(model.params, batch, **settings)
        assert len(compiled) == 2


@pytest.mark.parametrize('source', [None, 7])
def test_a_source_that_is_not_a_path_is_a_type_error(source):
    with pytest.raises(TypeError, match=f'the model is {source}: expected a folder, or a name'):
        load(source)


def test_an_empty_source_does_not_stand_for_the_working_directory():
    with pytest.raises(CheckpointError, match='the name of the model is empty: give a folder'):
        load('')
