"""A run never overwrites what it reads, whatever path or link is given for its output folder."""

import os
from pathlib import Path

import pytest

from vipllava_jax.training.output_folder import check_overwrites_no_input, check_writable_folder
from vipllava_jax.training.settings_file import read_settings


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model, rows and pictures, and links to each."""
    monkeypatch.chdir(tmp_path)
    for folder in ('model', 'pictures', 'run/checkpoints', 'run/model'):
        (tmp_path / folder).mkdir(parents=True)
    for file in (
        'rows.json',
        'run/metrics.jsonl',
        'run/run.json',
        'run/checkpoints/rows.json',
        'run/mine.json',
    ):
        (tmp_path / file).write_text('[]')
    (tmp_path / 'to-model').symlink_to('model')
    (tmp_path / 'to-pictures').symlink_to('pictures')
    (tmp_path / 'hard.jsonl').hardlink_to('run/metrics.jsonl')
    return tmp_path


def check(model='model', **keys):
    settings = read_settings(**{'model': model, 'data': 'rows.json', 'output': 'run', **keys})
    check_writable_folder(Path(settings.output))
    check_overwrites_no_input(settings, Path(model))


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'output': 'model'}, 'output model is the folder of the initial model'),
        ({'output': './pictures/../model/'}, 'is the folder of the initial model'),
        ({'output': 'to-model'}, 'is the folder of the initial model'),
        ({'output': 'model/run'}, 'or lies in it'),
        ({'output': 'to-model/deep/run'}, 'or lies in it'),
        ({'model': 'to-model', 'output': 'model'}, 'is the folder of the initial model'),
        ({'model': 'run/model', 'merge': True}, 'model run/model is, lies in, or contains run/model'),
        ({'model': 'run/model', 'recipe': 'stage-2'}, 'model run/model is, lies in, or contains run/model'),
        ({'model': 'run/checkpoints/9'}, 'is, lies in, or contains run/checkpoints'),
        ({'output': 'pictures', 'images': 'to-pictures'}, 'is the folder of the pictures'),
        ({'images': 'run/checkpoints'}, 'images run/checkpoints is, lies in'),
        ({'data': 'run/metrics.jsonl'}, 'data run/metrics.jsonl is, lies in'),
        ({'data': ['rows.json', 'hard.jsonl']}, 'data hard.jsonl is, lies in, or contains run/metrics.jsonl'),
        ({'data': 'run/checkpoints/rows.json'}, 'which the run writes'),
        ({'eval_data': 'run/run.json'}, 'eval_data run/run.json is'),
        ({'output': 'rows.json'}, 'rows.json is a file, expected a folder'),
        ({'output': 'rows.json/deep/run'}, 'rows.json is a file, expected a folder'),
    ],
)
def test_an_output_that_overwrites_an_input_is_an_error(here, keys, message):
    with pytest.raises(ValueError, match=message) as error:
        check(**keys)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'keys',
    [
        {},
        {'output': '.'},
        {'output': 'new/run'},
        {'output': 'pictures/run', 'images': 'pictures'},
        {'images': '.'},
        {'data': 'run/mine.json'},
        {'model': 'run/model'},  # whose adapter is written next to it
    ],
)
def test_a_separate_folder_is_valid(here, keys):
    check(**keys)


@pytest.mark.parametrize('name', ['run.json', 'metrics.jsonl', '.lock'])
@pytest.mark.parametrize('target', ['model/config.json', 'pictures/0.png', 'run.toml'])
def test_files_of_a_run_must_not_be_links(here, name, target):
    (here / target).write_text('{}')
    (here / 'run' / name).unlink(missing_ok=True)
    (here / 'run' / name).symlink_to(here / target)
    with pytest.raises(ValueError, match=f'run/{name} is a link'):
        check(images='pictures')


@pytest.mark.parametrize('name', ['run.json', 'metrics.jsonl', '.lock'])
def test_files_of_a_run_must_be_regular(here, name):
    (here / 'run' / name).unlink(missing_ok=True)
    os.mkfifo(here / 'run' / name)
    with pytest.raises(ValueError, match=f'run/{name}: expected a regular file, found a FIFO'):
        check()


@pytest.mark.parametrize('name', ['checkpoints', 'tensorboard'])
def test_folders_of_a_run_may_be_links_but_not_into_the_model(here, name):
    (here / 'disk').mkdir()
    link = here / 'new' / name
    link.parent.mkdir()
    link.symlink_to(here / 'disk')
    check(output='new')
    link.unlink()
    link.symlink_to(here / 'model')
    with pytest.raises(ValueError, match=f'model model is, lies in, or contains new/{name}'):
        check(output='new')


def test_a_broken_link_is_an_error(here):
    (here / 'dangling').symlink_to('nowhere')
    with pytest.raises(ValueError, match='is a broken link'):
        check(output='dangling')
