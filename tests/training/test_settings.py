"""The settings of a run, from a file, flags and the recipe; errors are one line."""

import os

import pytest

from vipllava_jax.inputs.pixels import FITS
from vipllava_jax.training.recipes import RECIPES
from vipllava_jax.training.settings import KEYS
from vipllava_jax.training.settings_file import read_settings

GIVEN = dict(model='m', data='d.json', output='o')


def test_arguments_override_the_file_which_overrides_the_recipe(tmp_path):
    file = tmp_path / 'run.toml'
    file.write_text('recipe = "stage-1"\nbatch = 8\nlearning-rate = 1\ndata = ["a.json", "b.json"]\n')
    settings = read_settings(file, model='m', output=tmp_path, batch=16)
    assert (settings.batch, settings.learning_rate, settings.data) == (16, 1.0, ('a.json', 'b.json'))
    assert (settings.template, settings.trains, settings.output) == ('plain', ('projector',), str(tmp_path))
    assert (settings.epochs, settings.steps) == (1.0, None)


def test_steps_replace_the_epochs_of_the_recipe():
    settings = read_settings(**GIVEN, steps=10)
    assert (settings.epochs, settings.steps) == (None, 10)


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_recipe_has_valid_settings(recipe):
    settings = read_settings(**GIVEN, recipe=recipe)
    assert {name: getattr(settings, name) for name in vars(RECIPES[recipe])} == vars(RECIPES[recipe])


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'learning_rte': 1e-4}, 'learning_rte is not a setting; did you mean learning_rate'),
        ({'batch': 0}, 'batch is 0, expected 1 to 65,536'),
        ({'batch': 2.5}, 'batch is 2.5, expected a whole number'),
        ({'batch': True}, 'batch is True, expected a whole number'),
        ({'skip_broken': 1}, 'expected true or false'),
        ({'learning_rate': float('nan')}, 'learning_rate is nan'),
        ({'lora_dropout': 1.0}, 'expected 0 to 0.9'),
        ({'optimizer': 'adam'}, "optimizer is 'adam', expected one of adamw, lion"),
        ({'trains': ['llama', 'clip']}, "trains is 'clip', expected one of vision, projector"),
        ({'data': 5}, 'data is 5, expected a list'),
        ({'recipe': 'stage-4'}, 'expected one of stage-1'),
        ({'epochs': 0}, 'epochs is 0.0, expected more than 0, and finite'),
        ({'epochs': float('inf')}, 'epochs is inf, expected more than 0'),
        ({'epochs': float('nan')}, 'epochs is nan'),
        ({'epochs': -1}, 'epochs is -1.0'),
        ({'epochs': 10**400}, 'epochs is a whole number of 401 digits'),
        ({'learning_rate': float('inf')}, 'learning_rate is inf, expected 0 or more, and finite'),
        ({'learning_rate': 10**400}, 'learning_rate is a whole number of 401 digits'),
        ({'weight_decay': 1e300}, 'weight_decay is 1e+300'),
        ({'clip_norm': float('inf')}, 'clip_norm is inf'),
        ({'lora_alpha': 0}, 'lora_alpha is 0.0, expected more than 0'),
        ({'trains': []}, 'trains is a list of 0 entries, expected 1 to 1000'),
        ({'trains': ()}, 'trains is a list of 0 entries'),
        ({'lora_targets': []}, 'lora_targets is a list of 0 entries'),
        ({'data': []}, 'data is a list of 0 entries'),
        ({'data': ['a.json', '']}, "data is '', expected a string that is not empty"),
        ({'data': ['a'] * 1001}, 'data is a list of 1001 entries'),
        *(
            ({name: ''}, f"{name} is ''")
            for name in ('model', 'data', 'output', 'images', 'eval_data', 'template', 'recipe', 'dtype')
        ),
        ({'model': 'a\0b'}, r"model is 'a\x00b', expected a string"),
        ({'data': 'x' * 5000 + '\0'}, 'data is'),
        *(
            ({name: 10**digits}, f'{name} is ')
            for name, key in KEYS.items()
            if key.type is int
            for digits in (10, 30, 400, 5000)
            if 10**digits > (key.maximum or 0)
        ),
        ({'seed': -1}, 'seed is -1, expected 0 to 4,294,967,295'),
        ({'x' * 9000: 1}, 'is not a setting; did you mean'),
        ({'\x1b[2J': 1}, 'is not a setting; did you mean'),
        ({'batch': [[[1]]]}, 'batch is a list of 1 entries, expected a whole number'),
        ({'batch-': 1}, 'is not a setting'),
        ({'learning_rate': 1e-4, 'learning-rate': 1e-4}, 'given twice'),
        ({'model': None}, 'model: must be given, in the file or as --model'),
        (
            {'model': None, 'output': None},
            'model, output: must be given, in the file or as --model, --output',
        ),
        ({'steps': 1, 'epochs': 2}, 'give only one of them'),
        ({'batch': 10, 'accumulate': 4}, '4 equal micro-batches'),
        ({'export': 'best'}, 'needs eval_data'),
        ({'trains': ['llama', 'lora']}, 'give only one'),
        ({'trains': 'llama', 'quantize': 'int8'}, 'cannot be trained'),
        ({'mesh': 4}, 'mesh is 4, expected a string'),
        ({'mesh': ''}, "mesh is ''"),
        ({'mesh': '4'}, "mesh is '4', expected axis=devices, separated by commas"),
        ({'mesh': 'rows=4'}, "mesh: there is no axis 'rows'; the axes are data, fsdp, tensor"),
        ({'mesh': 'fsdp=\x1b[2J'}, "mesh: fsdp is '\\x1b[2J', expected a whole number of devices"),
        (
            {'mesh': 'fsdp=4,tensor=2', 'batch': 12, 'accumulate': 2},
            'batch 12: its micro-batches of 6 rows cannot be divided over 4 devices (mesh fsdp=4,tensor=2); '
            'make batch a multiple of 8',
        ),
    ],
)
def test_invalid_settings_are_errors_of_one_line(keys, message):
    with pytest.raises(ValueError, match='.') as caught:
        read_settings(**{**GIVEN, **keys})
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize('name', [name for name, key in KEYS.items() if key.type is int])
def test_every_whole_number_is_bounded(name):
    assert KEYS[name].minimum is not None
    assert KEYS[name].maximum is not None


def test_the_axis_tensor_does_not_divide_the_rows():
    for mesh in ('tensor=3', 'auto', 'data=2, fsdp=2'):
        assert read_settings(**GIVEN, mesh=mesh, batch=4).mesh == mesh


def test_a_byte_order_mark_is_ignored(tmp_path):
    file = tmp_path / 'run.toml'
    file.write_text('\ufeffseed = 5\n', 'utf-8')
    assert read_settings(file, **GIVEN).seed == 5


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-le', 'utf-32-be'])
def test_another_encoding_is_an_error(tmp_path, encoding):
    file = tmp_path / 'run.toml'
    file.write_bytes('seed = 5\n'.encode(encoding))
    with pytest.raises(ValueError, match=f'run.toml: is {encoding[:6].upper()}, expected UTF-8'):
        read_settings(file, **GIVEN)


def test_special_files_are_errors(tmp_path):
    os.mkfifo(tmp_path / 'run.toml')
    for name, file_type in (('run.toml', 'FIFO'), ('.', 'folder'), ('/dev/zero', 'device')):
        with pytest.raises(ValueError, match=f'expected a regular file, found a {file_type}'):
            read_settings(tmp_path / name, **GIVEN)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = ', 'not TOML'),
        ('[data]\nx = 1', 'expected a list'),
        ('data = ' + '[' * 5000 + ']' * 5000, 'not TOML'),
        ('data = ' + '[' * 300 + ']' * 300, 'data is a list of 1 entries, expected a string|not TOML'),
        (f'seed = {"9" * 5000}', 'not TOML'),
        (f'seed = {"8" * 400}', 'seed is a whole number of 400 digits, expected 0 to'),
        ('epochs = inf', 'epochs is inf'),
        ('epochs = nan', 'epochs is nan'),
        ('epochs = 0', 'epochs is 0'),
        ('trains = []', 'trains is a list of 0'),
        ('seed = 1\nseed = 2', 'not TOML'),
        ('seed = 2020-01-01', 'seed is datetime.date.* expected a whole number'),
        ('"\\u001b[2J" = 2', 'is not a setting; did you mean'),
    ],
)
def test_an_invalid_file_is_an_error_that_names_it(tmp_path, text, message):
    file = tmp_path / 'run.toml'
    file.write_text(text)
    with pytest.raises(ValueError, match=f'run.toml: .*{message}'):
        read_settings(file, model='m', output='o')
    with pytest.raises(ValueError, match=r'none.toml: cannot be read'):
        read_settings(tmp_path / 'none.toml')


def test_the_setting_fit_accepts_every_fit():
    assert KEYS['fit'].choices == FITS


def test_every_key_has_a_help_text():
    assert all(key.help for key in KEYS.values())
