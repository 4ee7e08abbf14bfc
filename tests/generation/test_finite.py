"""Logits that are not finite end an answer with an error that names the weights at fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import ragged
from tests.test_checkpoint import SMALL, random_params
from vipllava_jax.arrays import flat, nested
from vipllava_jax.generation.finite import explain, not_finite
from vipllava_jax.quantizing import quantize_leaves


@pytest.fixture(scope='module')
def params():
    return random_params(SMALL)


@pytest.fixture
def batch(rng):
    return ragged(SMALL, rng, [(9, 2), (4, 0), (5, 1)], T=32)


def with_value(params, path, value, at=0):
    """Params in which one value of a weight is replaced."""
    leaves = dict(flat(params))
    leaf = leaves[path]
    leaves[path] = leaf.reshape(-1).at[at].set(value).reshape(leaf.shape)
    return nested(leaves.items())


def error_message(params, batch, **settings) -> str:
    with pytest.raises(ValueError, match="the model's logits are not finite") as error:
        vj.generate(params, batch, cfg=SMALL, max_new_tokens=4, **settings)
    message = str(error.value)
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    ('path', 'value'),
    [('llama/layers_0/gate/w', np.inf), ('llama/norm/w', np.nan), ('llama/head/w', -np.inf)],
)
def test_a_weight_that_is_not_finite_is_named(params, batch, path, value):
    message = error_message(with_value(params, path, value), batch)
    assert f': {path} holds NaN or infinity; get a complete copy' in message


def test_a_weight_that_is_not_finite_is_named_when_sampling(params, batch):
    broken = with_value(params, 'llama/norm/w', np.nan)
    assert 'llama/norm/w' in error_message(broken, batch, temperature=1.0, seed=0)


@pytest.mark.slow
def test_invalid_logits_are_replaced_where_the_settings_say_so(params, batch):
    broken = with_value(params, 'llama/norm/w', np.nan)
    settings = dict(remove_invalid_values=True, logit_bias={7: 1.0}, eos=(), max_new_tokens=12)
    out = vj.generate(broken, batch, cfg=SMALL, **settings)
    assert not out.tokens.any()  # the bias of NaN is NaN, which becomes 0 as all others


def test_a_weight_that_only_one_row_uses_is_named(params, batch):
    """A weight of the tower, which rows without a picture do not use."""
    broken = with_value(params, 'projector/linear_2/b', np.nan)
    assert 'projector/linear_2/b holds' in error_message(broken, batch)
    words = batch._replace(images=batch.images[:, :0], image_counts=batch.image_counts * 0)
    words.tokens[words.tokens == SMALL.image_token] = 5
    assert vj.generate(broken, words, cfg=SMALL, max_new_tokens=4).lengths.all()


def test_a_stream_fails_before_its_first_token(params, batch):
    pieces = []
    with pytest.raises(ValueError, match='not finite'):
        pieces.extend(
            vj.stream(with_value(params, 'llama/norm/w', np.nan), batch, cfg=SMALL, max_new_tokens=4)
        )
    assert not pieces


def test_a_message_counts_the_weights_that_it_does_not_name(params, batch):
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), params)
    assert ' and ' in error_message(broken, batch)
    assert ' more hold NaN or infinity' in error_message(broken, batch)


@pytest.mark.parametrize('quantize', ['int8', 'int4'])
def test_the_scale_of_a_quantized_weight_is_named(params, quantize):
    small = nested(quantize_leaves(flat(with_value(params, 'llama/layers_0/q/w', np.inf)), quantize))
    assert not_finite(small) == ['llama/layers_0/q/w/scale']


def test_an_overflow_of_float16_gets_advice(params, batch):
    large = jax.tree.map(lambda x: x.astype(jnp.float16), with_value(params, 'llama/norm/w', 6e4))
    message = explain(large, batch)
    assert message.endswith(
        'all weights are finite, but a result overflowed; '
        'numbers above 65504 are infinite in float16: try --dtype bfloat16 or float32'
    )
    infinite = jax.tree.map(lambda x: x.astype(jnp.float16), with_value(params, 'llama/norm/w', 7e4))
    message = explain(infinite, batch)
    assert 'llama/norm/w holds NaN or infinity; numbers above 65504 are infinite in float16' in message


def test_images_that_are_not_finite_are_named(params, batch):
    images = np.full_like(batch.images, np.nan)
    assert 'the images hold NaN' in error_message(params, batch._replace(images=images))
