"""Random params, their shapes, and the axes that the modules state for each weight."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from tests.conftest import SMALL, TINY
from vipllava_jax.arrays import flat
from vipllava_jax.config import VIP_LLAVA_7B
from vipllava_jax.model import fused
from vipllava_jax.model.layers import WithAxes
from vipllava_jax.model.params import abstract, init, specs, weight_axes
from vipllava_jax.model.vipllava import VipLlava

LLAVA = dataclasses.replace(SMALL, feature_layers=(-2,), projector_norm=False)
TIED = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, tied=True))


@pytest.mark.parametrize('cfg', [SMALL, LLAVA, TIED], ids=['with norm', 'without norm', 'tied'])
def test_specs_describe_the_params_that_init_creates(cfg):
    def boxed():
        size = cfg.vision.image_size
        images, embeddings = jnp.zeros((1, 1, size, size, 3)), jnp.zeros((1, 1, cfg.text.width))
        tokens = jnp.zeros((1, 1), int)
        return VipLlava(cfg).init(jax.random.key(0), tokens, images, embeddings, method='forward')['params']

    created = flatten_dict(jax.eval_shape(boxed), sep='/')
    described = specs(cfg)
    assert created.keys() == described.keys()
    for path, box in created.items():
        assert isinstance(box, WithAxes)
        assert box.value.shape == described[path].shape, path
        assert (box.axes.letters, box.axes.contracted) == (
            described[path].letters,
            described[path].contracted,
        )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_abstract_has_the_shapes_and_dtype_of_init(dtype):
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), SMALL, dtype))
    assert shapes == abstract(SMALL, dtype)
    assert list(flat(shapes)) == list(flat(abstract(SMALL, dtype)))  # in the same order
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}


def test_specs_are_in_the_order_of_the_params():
    assert list(specs(TINY)) == [path for path, _ in flat(abstract(TINY))]


def test_contracted_letters_come_first():
    for path, spec in specs(TINY).items():
        assert spec.letters.startswith(spec.contracted), path


def test_the_axes_of_an_attention_output():
    spec = specs(VIP_LLAVA_7B)['llama/layers_31/o/w']
    assert (spec.letters, spec.contracted, spec.shape) == ('NHD', 'NH', (32, 128, 4096))
    assert (spec.fan_in, spec.size, spec.quantized_axes, spec.decays) == (4096, 4096**2, 2, True)


def test_only_products_of_the_decoder_are_quantizable():
    quantizable = {path for path, spec in specs(TINY).items() if spec.quantizable}
    names = {path.split('/')[-2] for path in quantizable}
    assert names == {'q', 'k', 'v', 'o', 'gate', 'up', 'down', 'head'}
    assert all(path.startswith('llama/') for path in quantizable)
    assert all(spec.quantized_axes == 0 for path, spec in specs(TINY).items() if path not in quantizable)


def test_norms_and_biases_have_no_weight_decay():
    constant = {path.split('/', 1)[1] for path, spec in specs(SMALL).items() if not spec.decays}
    assert constant == {
        *(f'layers_{i}/{name}/b' for i in range(3) for name in ('q', 'k', 'v', 'o', 'up', 'down')),
        *(f'layers_{i}/{name}/{leaf}' for i in range(3) for name in ('norm1', 'norm2') for leaf in 'wb'),
        *(f'{name}/{leaf}' for name in ('pre_norm', 'post_norm', 'norm') for leaf in 'wb'),
        *(f'layers_{i}/{name}/w' for i in range(2) for name in ('attn_norm', 'mlp_norm')),
        *('linear_1/b', 'linear_2/b'),
    }


def test_the_axes_of_a_path_do_not_depend_on_the_config():
    for cfg in (SMALL, LLAVA, TIED):
        for path, spec in specs(cfg).items():
            axes = weight_axes(path)
            assert (axes.letters, axes.contracted) == (spec.letters, spec.contracted)
            assert (axes.quantizable, axes.decays) == (spec.quantizable, spec.decays)


def test_fused_weights_have_the_letters_of_their_product():
    layer = jax.eval_shape(fused.fuse, abstract(TINY)['llama']['layers_0'])
    sizes = {**TINY.text.sizes, 'X': TINY.text.sizes['G'] + 2}
    axes = weight_axes('llama/layers_0/qkv/w')
    assert (axes.letters, axes.contracted, axes.quantized_axes) == ('DXKH', 'D', 1)
    assert layer['qkv']['w'].shape == tuple(sizes[a] for a in axes.letters)
    axes = weight_axes('llama/layers_0/gate_up/w')
    assert (axes.letters, axes.contracted, axes.quantized_axes) == ('DXF', 'D', 1)
    assert layer['gate_up']['w'].shape == tuple({**sizes, 'X': 2}[a] for a in axes.letters)


@pytest.mark.parametrize('path', ['llama/layers_0/qk/w', 'llama', 'llama/layers_0/q/w/a', ''])
def test_a_path_without_a_weight_is_refused(path):
    with pytest.raises(ValueError, match='no model has a weight of this name'):
        weight_axes(path)
