"""What a run is asked to do: from a file, from flags, from its recipe; mistakes in a line."""

import pytest

from vipllava_jax.inputs.pixels import FITS
from vipllava_jax.training.config import KEYS, settings
from vipllava_jax.training.recipes import RECIPES

GIVEN = dict(model='m', data='d.json', output='o')


def test_what_is_given_goes_before_the_file_and_that_before_the_recipe(tmp_path):
    file = tmp_path / 'run.toml'
    file.write_text('recipe = "stage-1"\nbatch = 8\nlearning-rate = 1\ndata = ["a.json", "b.json"]\n')
    made = settings(file, model='m', output=tmp_path, batch=16)
    assert (made.batch, made.learning_rate, made.data) == (16, 1.0, ('a.json', 'b.json'))
    assert (made.template, made.trains, made.output) == ('plain', ('projector',), str(tmp_path))
    assert (made.epochs, made.steps) == (1.0, None)


def test_steps_stand_instead_of_the_recipes_epochs():
    made = settings(**GIVEN, steps=10)
    assert (made.epochs, made.steps) == (None, 10)


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_recipe_is_one_of_settings(recipe):
    made = settings(**GIVEN, recipe=recipe)
    assert {name: getattr(made, name) for name in vars(RECIPES[recipe])} == vars(RECIPES[recipe])


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'learning_rte': 1e-4}, 'learning_rte is no key of a run; the nearest is learning_rate'),
        ({'batch': 0}, 'batch is 0, expected 1 or more'),
        ({'batch': 2.5}, 'batch is 2.5, expected a whole number'),
        ({'batch': True}, 'batch is True, expected a whole number'),
        ({'skip_broken': 1}, 'expected true or false'),
        ({'learning_rate': float('nan')}, 'learning_rate is nan'),
        ({'lora_dropout': 1.0}, 'expected 0 to 0.9'),
        ({'trains': ['llama', 'clip']}, "trains is 'clip', expected one of vision, projector"),
        ({'data': 5}, 'data is 5, expected a list'),
        ({'recipe': 'stage-4'}, 'expected one of stage-1'),
        ({'model': None}, 'model: must be given, in the file or as --model'),
        ({'steps': 1, 'epochs': 2}, 'give one of them'),
        ({'batch': 10, 'accumulate': 4}, '4 equal parts'),
        ({'export': 'best'}, 'needs eval_data'),
        ({'trains': ['llama', 'lora']}, 'give one of them'),
        ({'trains': 'llama', 'quantize': 'int8'}, 'cannot be trained'),
    ],
)
def test_mistakes_are_told_in_a_line(keys, message):
    with pytest.raises(ValueError, match='.') as caught:
        settings(**{**GIVEN, **keys})
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('text', 'message'), [('a = ', 'not TOML'), ('[data]\nx = 1', 'expected a list')])
def test_a_file_that_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / 'run.toml'
    file.write_text(text)
    with pytest.raises(ValueError, match=f'run.toml: .*{message}'):
        settings(file, model='m', output='o')
    with pytest.raises(ValueError, match=r'none.toml: cannot be read'):
        settings(tmp_path / 'none.toml')


def test_every_fit_may_be_chosen():
    assert KEYS['fit'].among == FITS


def test_every_key_explains_itself():
    assert all(key.help for key in KEYS.values())
