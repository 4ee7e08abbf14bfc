"""The record of a run in its folder: invalid content is named by file and field."""

import json

import pytest

from vipllava_jax.training import identity
from vipllava_jax.training.config import settings


@pytest.fixture
def run(tmp_path):
    (tmp_path / 'rows.json').write_text('[]')
    made = settings(model='m', data=tmp_path / 'rows.json', output=tmp_path, steps=3)
    identity.confirm(tmp_path, made, begun=False)
    identity.note(tmp_path, tmp_path / 'model', 3)
    return tmp_path, made


def test_the_same_run_goes_on(run):
    folder, made = run
    identity.confirm(folder, made, begun=True)
    (folder / 'model').mkdir()
    assert identity.made(folder, folder / 'model') == 3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'identity': [1]}, r'"identity" is \[1\], expected an object'),
        ({'identity': 'x'}, """"identity" is 'x', expected an object"""),
        ({'made': 3}, '"made" is 3, expected an object'),
        ({'made': None}, '"made" is None'),
        ({'made': {'model': '3'}}, """"made.model" is '3', expected a step"""),
        ({'made': {'model': -1}}, '"made.model" is -1'),
        ({'made': {'model': [[3]]}}, '"made.model" is a list'),
    ],
)
def test_a_damaged_field_is_named(run, changes, message):
    folder, made = run
    path = folder / identity.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    before = path.read_text()
    for go_on in (
        lambda: identity.confirm(folder, made, begun=True),
        lambda: identity.made(folder, folder / 'model'),
        lambda: identity.note(folder, folder / 'model', 3),
    ):
        with pytest.raises(ValueError, match=f'run.json: {message}') as error:
            go_on()
        assert str(error.value).isprintable()
    assert path.read_text() == before


@pytest.mark.parametrize('text', ['', 'junk', '[]', '{"identity": ' + '[' * 5000, '\0'])
def test_a_damaged_file_is_named(run, text):
    folder, made = run
    (folder / identity.FILE).write_text(text)
    with pytest.raises(ValueError, match=r'run.json: (not JSON|expected a JSON object)'):
        identity.confirm(folder, made, begun=True)


def test_checkpoints_of_which_nothing_is_known_are_not_gone_on_with(run):
    folder, made = run
    path = folder / identity.FILE
    for text in (None, '{}', '{"identity": {}}'):
        path.unlink()
        if text:
            path.write_text(text)
        with pytest.raises(ValueError, match='run.json does not say which run'):
            identity.confirm(folder, made, begun=True)
        identity.confirm(folder, settings(**{**given(made), 'resume_anyway': True}), begun=True)


def given(made):
    return dict(model=made.model, data=made.data, output=made.output, steps=made.steps)


def test_settings_of_any_kind_are_told_in_a_line(run):
    folder, made = run
    path = folder / identity.FILE
    told = json.loads(path.read_text())
    told['identity'] |= {'seed': [[1]] * 3, 'template': 'x' * 9000, 'batch': '\x1b[2J'}
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match='holds a run with other settings .*seed was a list') as error:
        identity.confirm(folder, made, begun=True)
    assert '\x1b' not in str(error.value)
    told['identity'] = {'model': 'other'}
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match='model was other and is m, .* and [0-9]+ more') as error:
        identity.confirm(folder, made, begun=True)
    assert len(str(error.value)) <= 500
