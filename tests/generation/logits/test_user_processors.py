"""Functions of the user change the logits of each step; what is wrong with one is said with its name."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import ragged
from vipllava_jax.generation.logits.processing import call


def ban(ids, lengths, logits, *, token=3):
    return logits.at[:, token].set(-jnp.inf)


@dataclasses.dataclass(frozen=True)
class Ban:
    token: int

    def __call__(self, ids, lengths, logits):
        return ban(ids, lengths, logits, token=self.token)


class WithoutHash(Ban):
    __hash__ = None


ARGUMENTS = jnp.zeros((2, 9), int), jnp.array([4, 5]), jnp.zeros((2, 7))


@pytest.mark.parametrize(
    'processor',
    [ban, partial(ban, token=3), Ban(3), jax.jit(ban)],
    ids=['function', 'partial', 'object', 'jit'],
)
def test_functions_partials_and_objects_are_processors(processor):
    assert vj.GenerationSettings(processors=processor).processors == (processor,)
    for traced in (call, jax.jit(call, static_argnums=0)):
        logits = np.asarray(traced(processor, *ARGUMENTS))
        assert np.isinf(logits[:, 3]).all()
        assert np.isfinite(np.delete(logits, 3, axis=1)).all()


def test_a_processor_without_a_hash_is_refused():
    with pytest.raises(ValueError, match=r'holds WithoutHash\(.* has no hash: use a function, or a'):
        vj.GenerationSettings(processors=[ban, WithoutHash(3)])


@pytest.mark.parametrize(
    ('returned', 'found'),
    [
        (None, 'NoneType'),
        (0.5, 'float'),
        (jnp.zeros(7), r'float32\[7\]'),
        (jnp.zeros((2, 7), int), r'int32\[2,7\]'),
        (jnp.zeros((2, 7), bool), r'bool\[2,7\]'),
        ([jnp.zeros((2, 7))], 'list'),
    ],
    ids=repr,
)
def test_what_is_not_logits_is_refused(returned, found):
    def wrong(ids, lengths, logits):
        return returned

    message = rf'processors: wrong returned {found}, but must return the logits, float32\[2,7\]'
    with pytest.raises(ValueError, match=message):
        call(wrong, *ARGUMENTS)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, np.float64])
def test_logits_of_another_precision_are_converted(dtype):
    returned = call(lambda ids, lengths, logits: np.ones(logits.shape, dtype), *ARGUMENTS)
    assert returned.dtype == jnp.float32


def test_an_error_of_a_processor_names_it():
    def wrong(ids, lengths, logits):
        return logits if logits[0, 0] > 0 else -logits

    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        jax.jit(call, static_argnums=0)(wrong, *ARGUMENTS)
    assert 'raised by the processor wrong, which is called under jit' in caught.value.__notes__


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_processor_sees_prompt_and_answer(params, cfg, rng, temperature):
    def count_up(ids, lengths, logits):
        newest = jnp.take_along_axis(ids, lengths[:, None] - 1, axis=1)[:, 0]
        return jnp.where(jax.nn.one_hot(newest + 1, logits.shape[-1], dtype=bool), 0.0, -jnp.inf)

    batch = ragged(cfg, rng, [(9, 2), (4, 0)], T=32)
    batch.tokens[[0, 1], batch.lengths - 1] = [20, 50]
    out = vj.generate(
        params, batch, cfg=cfg, max_new_tokens=12, eos=(), processors=count_up, temperature=temperature
    )
    np.testing.assert_array_equal(out.tokens, [range(21, 33), range(51, 63)])
