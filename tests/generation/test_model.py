"""A model describes itself in a few lines, wherever its weights are."""

import dataclasses

import jax
import pytest

from tests.training.test_lora import trained
from vipllava_jax.generation.model import Model
from vipllava_jax.loading import load
from vipllava_jax.model.params import abstract


def test_the_repr_has_the_sizes_in_a_few_lines(folder):
    model = load(folder)
    lines = repr(model).splitlines()
    assert len(lines) <= 8
    assert max(map(len, lines)) < 110
    for expected in ('parameters, 0.46 MB: float32', '2 layers of width 48', '400 tokens', '28 x 28'):
        assert expected in repr(model), expected
    assert f'device: {jax.devices()[0].device_kind}' in repr(model)


@pytest.mark.parametrize('quantize', ['int8', 'int4'])
def test_quantized_weights_are_named(folder, quantize):
    weights = repr(load(folder, quantize=quantize)).splitlines()[1]
    assert f'{quantize} ' in weights
    assert 'float32 ' in weights


def test_a_separate_adapter_is_mentioned(folder):
    model = load(folder, fuse=False)
    assert 'adapter' not in repr(model)
    assert 'with an adapter on ' in repr(model._replace(params=trained(model.params, model.cfg)))


def test_a_notebook_shows_a_table_in_which_text_is_escaped(folder, monkeypatch):
    model = load(folder)
    shown = model._repr_html_()
    assert shown.count('<tr>') == len(repr(model).splitlines()) - 2
    monkeypatch.setattr('vipllava_jax.generation.model._device', lambda params: '<b>')
    assert '&lt;b&gt;' in model._repr_html_()


def test_the_repr_accepts_shapes_and_empty_params(cfg):
    shapes = Model(abstract(cfg), cfg, None)
    assert 'device: none' in repr(shapes)
    assert 'processor: none' in repr(shapes)
    assert 'weights: none' in repr(shapes._replace(params={}))
    large = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, vocab=10**7))
    assert '0.96 billion parameters' in repr(shapes._replace(params=abstract(large)))
