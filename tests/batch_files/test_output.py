"""The file of answers: nothing that it holds is lost, and nothing of somebody else is overwritten."""

import errno
import json
import os

import pytest

from vipllava_jax import files
from vipllava_jax.batch_files import output as module
from vipllava_jax.batch_files.output import is_complete, open_output
from vipllava_jax.batch_files.run_file import read_run, run_path

SETTINGS = {'data': {'bytes': 3}, 'weights': 'w', 'temperature': 0.5, 'drawn_seed': 1, 'model': 'm'}


def answer(id):
    return {'id': id, 'answer': f'to {id}'}


def error(id):
    return {'id': id, 'error': 'wrong'}


@pytest.fixture
def path(tmp_path):
    """A file with two answers and an error."""
    path = tmp_path / 'out.jsonl'
    with open_output(path, SETTINGS) as output:
        output.write([answer('a'), error('b')])
        output.write([answer('c\x1b[31m')])
    return path


def refuse(path, settings, message):
    """Checks that the file is refused."""
    with pytest.raises((ValueError, OSError), match=message), open_output(path, settings):
        pass


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_in_the_file_at_once_and_safe_to_print(tmp_path):
    path = tmp_path / 'out.jsonl'
    with open_output(path, SETTINGS) as output:
        output.write([answer('a\x1b[31m\x9b')])
        assert '\x1b' not in path.read_text()
        assert lines(path) == [answer('a\x1b[31m\x9b')]
        assert read_run(path).complete is None
        output.complete()
    assert json.loads(run_path(path).read_text()) == {
        'vipllava_batch': 1,
        'settings': SETTINGS,
        'complete': {'answers': 1, 'errors': 0, 'bytes': path.stat().st_size},
    }


@pytest.mark.parametrize('cut', [0, 1, 10])
def test_a_file_is_continued_where_it_was_cut_off(path, cut):
    complete = path.read_bytes()
    if cut:
        path.write_bytes(complete[:-cut])
    with open_output(path, {**SETTINGS, 'drawn_seed': 2, 'model': './m'}) as output:
        assert [id in output.ids for id in ('a', 'b', 'c\x1b[31m', 'd')] == [True, True, not cut, False]
        assert output.settings['drawn_seed'] == 1
        output.write([answer('d')])
    assert lines(path) == [answer('a'), error('b'), *([] if cut else [answer('c\x1b[31m')]), answer('d')]


def test_errors_are_kept_or_asked_again(path):
    with open_output(path, SETTINGS) as output:
        assert 'b' in output.ids
    inode = path.stat().st_ino
    with open_output(path, SETTINGS, retry_errors=True) as output:
        assert 'b' not in output.ids
        assert (output.answers, output.errors) == (2, 0)
        refuse(path, SETTINGS, 'another process')
        output.write([answer('b')])
    assert path.stat().st_ino != inode
    assert [line['id'] for line in lines(path)] == ['a', 'c\x1b[31m', 'b']
    assert sorted(os.listdir(path.parent)) == ['out.jsonl', 'out.run.json']


def test_a_second_writer_is_refused(path):
    with open_output(path, SETTINGS):
        refuse(path, SETTINGS, 'another process')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data': {'bytes': 4}}, 'other rows in the data'),
        ({'weights': 'x'}, 'other weights in the model'),
        ({'temperature': 1.0}, r'temperature was 0.5 and is 1.0'),
        ({'seed': 3}, 'seed was not given and is 3'),
        ({'temperature': None}, 'temperature was 0.5 and is not given'),
    ],
)
def test_answers_of_another_batch_are_refused(path, changes, message):
    before = path.read_bytes(), run_path(path).read_bytes()
    settings = {name: value for name, value in {**SETTINGS, **changes}.items() if value is not None}
    refuse(path, settings, message)
    with open_output(path, SETTINGS) as output:
        output.complete()
    with pytest.raises(ValueError, match=message):
        is_complete(path, settings)
    assert path.read_bytes() == before[0]


@pytest.mark.parametrize(
    'content',
    [b'x', b'{"a": 1}\n', b'[]\n', b'{"id": 1, "answer": "x"}\n', b'{"id": "a"}\n', b'\xff\n', b'\n'],
)
def test_files_of_others_are_refused_and_unchanged(tmp_path, content):
    path = tmp_path / 'out.jsonl'
    path.write_bytes(content)
    refuse(path, SETTINGS, r'no file of answers, because there is no out\.run\.json')
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ['out.jsonl']
    if content.endswith(b'\n'):
        path.unlink()
        with open_output(path, SETTINGS):
            pass
        path.write_bytes(content)
        refuse(path, SETTINGS, r'line 1 is')
        assert path.read_bytes() == content


@pytest.mark.parametrize('content', ['{}', '[]', '{"vipllava_batch": 2, "settings": {}}', 'x', '[' * 10**5])
def test_a_file_of_settings_of_others_is_refused_and_unchanged(tmp_path, content):
    path = tmp_path / 'out.jsonl'
    run_path(path).write_text(content)
    refuse(path, SETTINGS, r'out\.run\.json')
    assert run_path(path).read_text() == content
    assert os.listdir(tmp_path) == ['out.run.json']


def test_an_id_that_occurs_twice_is_damage(path):
    path.write_bytes(path.read_bytes() + b'{"id": "a", "answer": ""}\n')
    refuse(path, SETTINGS, 'line 4, repeats the id')


def test_other_names_are_refused(tmp_path):
    for name, message in [('photo.jpg', r'ends in \.jsonl'), ('none/out.jsonl', 'there is no folder')]:
        refuse(tmp_path / name, SETTINGS, message)
    (tmp_path / 'folder.jsonl').mkdir()
    refuse(tmp_path / 'folder.jsonl', SETTINGS, 'is a folder')
    os.mkfifo(tmp_path / 'fifo.jsonl')
    refuse(tmp_path / 'fifo.jsonl', SETTINGS, 'FIFO')


def test_a_full_disk_keeps_complete_lines_and_says_so(path, monkeypatch):
    before, write = path.read_bytes(), os.write

    def full(file, data):
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:20])

    with open_output(path, SETTINGS) as output, monkeypatch.context() as patch:
        patch.setattr(files.os, 'write', full)
        with pytest.raises(OSError, match='its 3 lines are kept, and the same command continues') as raised:
            output.write([answer('d')])
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before


def test_the_file_is_synced_now_and_then(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, 'fsync', lambda file: synced.append(file))
    with open_output(tmp_path / 'out.jsonl', SETTINGS) as output:
        output.write([answer('a')])
        assert not synced
        monkeypatch.setattr(module, 'SYNC_SECONDS', 0.0)
        output.write([answer('b')])
        assert len(synced) == 1


def test_completeness_is_checked_by_size(path):
    assert is_complete(path, SETTINGS) is None
    with open_output(path, SETTINGS) as output:
        output.complete()
    assert is_complete(path, SETTINGS).complete['answers'] == 2
    with path.open('a') as file:
        file.write('\n')
    assert is_complete(path, SETTINGS) is None
    assert is_complete(path.with_name('none.jsonl'), SETTINGS) is None
