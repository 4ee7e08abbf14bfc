"""Weights that are not finite are named, before a run starts and before anything is exported."""

import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.training import runs
from vipllava_jax import checkpoint, training
from vipllava_jax.arrays import flat, nested
from vipllava_jax.generation.finite import describe_not_finite
from vipllava_jax.model.quantized import Int8
from vipllava_jax.training import export, finite, run
from vipllava_jax.training.finite import NotFinite


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp('world'))


@pytest.fixture
def keys(world, tmp_path):
    model, folder = world
    given = dict(model=model, data=folder / 'rows.jsonl', output=tmp_path / 'run', batch=4, workers=0)
    return dict(**given, recipe='finetune', steps=1, warmup=0.0, schedule='constant', optimizer='sgd')


def with_value(world, folder, path, value):
    """A copy of the model in which one value of a weight is replaced."""
    model = vj.load(world[0], fuse=False)
    leaves = dict(flat(model.params))
    leaves[path] = leaves[path].at[(0,) * leaves[path].ndim].set(value)
    params = nested(leaves.items())
    checkpoint.save(folder, params, model.cfg, files_from=world[0])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ('path', 'value'),
    [('llama/norm/w', np.nan), ('projector/linear_1/w', np.inf), ('clip/post_norm/b', -np.inf)],
)
def test_a_model_with_weights_that_are_not_finite_is_an_error(world, keys, tmp_path, path, value):
    model = with_value(world, tmp_path / 'not-finite', path, value)
    with pytest.raises(
        training.NotFinite, match=f'not-finite: {path} holds NaN or infinity: get a complete copy'
    ):
        training.train(**{**keys, 'model': model})
    assert not (keys['output'] / 'model').exists()


@pytest.mark.slow
@pytest.mark.parametrize(('recipe', 'result'), [('finetune', 'model'), ('lora', 'adapter')])
def test_a_result_that_is_not_finite_is_not_written(keys, recipe, result):
    """No later step's loss would reveal that the last step's update was not finite."""
    diverging = dict(learning_rate=3e38, recipe=recipe, **({'lora_rank': 2} if recipe == 'lora' else {}))
    for _ in range(2):  # the second time, the run is resumed
        with pytest.raises(
            training.NotFinite, match=rf'run/{result}: not written, because .*NaN or infinity'
        ) as caught:
            training.train(**{**keys, **diverging})
        assert 'llama/' in str(caught.value)
        assert not (keys['output'] / result).exists()


@pytest.mark.slow
def test_weights_that_overflow_in_the_dtype_of_the_model_are_not_written(world, keys, tmp_path, monkeypatch):
    half = tmp_path / 'half'
    model = vj.load(world[0], dtype='float16', fuse=False)
    vj.checkpoint.save(half, model.params, model.cfg, files_from=world[0])
    export_result = export.export_result

    def overflowing(plan, trained, frozen):
        path = 'projector/linear_1/b'
        leaves = dict(flat(trained))
        export_result(plan, nested({**leaves, path: leaves[path].at[0].set(1e5)}.items()), frozen)

    monkeypatch.setattr(run.export, 'export_result', overflowing)
    with pytest.raises(training.NotFinite, match='model: not written, because projector/linear_1/b holds'):
        training.train(**{**keys, 'model': half, 'recipe': 'projector'})
    assert not [path for path in keys['output'].iterdir() if 'model' in path.name]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_weights_that_are_not(keys, monkeypatch):
    monkeypatch.setattr(
        finite,
        'check_loaded',
        lambda source, params: params['llama']['norm'].update(w=params['llama']['norm']['w'] * jnp.nan),
    )
    with pytest.raises(training.NotFinite, match='step 1: the loss is nan.*llama/norm/w holds NaN'):
        training.train(**keys)


def test_weights_of_every_type_are_checked():
    w = Int8(jnp.ones((8, 4), jnp.int8), jnp.ones(8))
    assert describe_not_finite({'a': {'w': w, 'b': jnp.arange(3)}}) == ''
    params = {'a': {'w': w.replace(scale=w.scale * jnp.nan)}, 'b': np.array([1, np.inf], np.float32)}
    assert describe_not_finite(params) == 'a/w/scale, b hold NaN or infinity'
    many = {str(n): jnp.full(2, jnp.nan) for n in range(5)}
    assert describe_not_finite(many) == '0, 1, 2 and 2 more hold NaN or infinity'
    leaves = finite.check_each('out', [('x', jnp.ones(2)), ('y', jnp.full(2, jnp.inf))])
    assert next(leaves)[0] == 'x'
    with pytest.raises(NotFinite, match='out: not written, because y holds'):
        next(leaves)
