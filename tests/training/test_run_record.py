"""The record of a run in its folder: invalid content is named by file and field."""

import json

import pytest

from vipllava_jax.training import run_record
from vipllava_jax.training.settings_file import read_settings


@pytest.fixture
def run(tmp_path):
    (tmp_path / 'rows.json').write_text('[]')
    settings = read_settings(model='m', data=tmp_path / 'rows.json', output=tmp_path, steps=3)
    run_record.record_run(tmp_path, settings, resumes=False)
    run_record.record_export(tmp_path, tmp_path / 'model', 3)
    return tmp_path, settings


def test_the_same_run_is_resumed(run):
    folder, settings = run
    run_record.record_run(folder, settings, resumes=True)
    (folder / 'model').mkdir()
    assert run_record.exported_step(folder, folder / 'model') == 3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'identity': [1]}, r'"identity" is \[1\], expected an object'),
        ({'identity': 'x'}, """"identity" is 'x', expected an object"""),
        ({'exported': 3}, '"exported" is 3, expected an object'),
        ({'exported': None}, '"exported" is None'),
        ({'exported': {'model': '3'}}, """"exported.model" is '3', expected a step"""),
        ({'exported': {'model': -1}}, '"exported.model" is -1'),
        ({'exported': {'model': [[3]]}}, '"exported.model" is a list'),
    ],
)
def test_an_invalid_field_is_named(run, changes, message):
    folder, settings = run
    path = folder / run_record.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    before = path.read_text()
    for use in (
        lambda: run_record.record_run(folder, settings, resumes=True),
        lambda: run_record.exported_step(folder, folder / 'model'),
        lambda: run_record.record_export(folder, folder / 'model', 3),
    ):
        with pytest.raises(ValueError, match=f'run.json: {message}') as error:
            use()
        assert str(error.value).isprintable()
    assert path.read_text() == before


@pytest.mark.parametrize('text', ['', 'junk', '[]', '{"identity": ' + '[' * 5000, '\0'])
def test_a_damaged_file_is_named(run, text):
    folder, settings = run
    (folder / run_record.FILE).write_text(text)
    with pytest.raises(ValueError, match=r'run.json: (not JSON|expected a JSON object)'):
        run_record.record_run(folder, settings, resumes=True)


def test_checkpoints_of_an_unknown_run_are_not_resumed(run):
    folder, settings = run
    path = folder / run_record.FILE
    for text in (None, '{}', '{"identity": {}}'):
        path.unlink()
        if text:
            path.write_text(text)
        with pytest.raises(ValueError, match='run.json does not say which run'):
            run_record.record_run(folder, settings, resumes=True)
        run_record.record_run(
            folder, read_settings(**{**keys_of(settings), 'resume_anyway': True}), resumes=True
        )


def keys_of(settings):
    return dict(model=settings.model, data=settings.data, output=settings.output, steps=settings.steps)


def test_changed_settings_of_any_type_are_listed_in_one_line(run):
    folder, settings = run
    path = folder / run_record.FILE
    record = json.loads(path.read_text())
    record['identity'] |= {'seed': [[1]] * 3, 'template': 'x' * 9000, 'batch': '\x1b[2J'}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match='holds a run with other settings .*seed was a list') as error:
        run_record.record_run(folder, settings, resumes=True)
    assert '\x1b' not in str(error.value)
    record['identity'] = {'model': 'other'}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match='model was other and is m, .* and [0-9]+ more') as error:
        run_record.record_run(folder, settings, resumes=True)
    assert len(str(error.value)) <= 500
