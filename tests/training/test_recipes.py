"""The recipes agree with the authors' scripts."""

import pytest

from vipllava_jax.inputs.pixels import FITS
from vipllava_jax.inputs.prompts import TEMPLATES
from vipllava_jax.training.recipes import LORA, PARTS, RECIPES
from vipllava_jax.training.settings_file import read_settings


@pytest.mark.parametrize(
    ('name', 'trains', 'rate', 'batch', 'template', 'fit'),
    [
        ('stage-1', {'projector'}, 1e-3, 256, 'plain', 'crop'),
        ('stage-2', {'projector', 'llama'}, 2e-5, 128, 'vipllava', 'pad'),
        ('stage-3', {'projector', 'llama'}, 2e-7, 128, 'vipllava', 'pad'),
    ],
)
def test_the_stages_have_the_settings_of_the_authors(name, trains, rate, batch, template, fit):
    stage = RECIPES[name]
    assert set(stage.trains) == trains
    assert (stage.learning_rate, stage.batch, stage.template, stage.fit) == (rate, batch, template, fit)
    assert (stage.epochs, stage.schedule, stage.warmup, stage.weight_decay) == (1, 'cosine', 0.03, 0)
    assert (stage.max_length, stage.projector_rate) == (2048, None)


def test_lora_trains_the_projector_with_a_lower_learning_rate():
    lora = RECIPES['lora']
    assert (lora.trains, lora.learning_rate, lora.projector_rate) == (('projector', 'lora'), 2e-4, 2e-5)
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout) == (128, 256, 0.05)


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_is_valid(name):
    recipe = RECIPES[name]
    assert {*recipe.trains} <= {*PARTS, LORA}
    assert recipe.template in TEMPLATES
    assert recipe.fit in FITS
    settings = read_settings(recipe=name, model='model', data='data.json', output='output')
    assert all(getattr(settings, key) == value for key, value in vars(recipe).items())
