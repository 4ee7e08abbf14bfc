"""Files of answers are resumed, repaired after an interruption, and refused if they belong to another run."""

import errno
import json
import os

import pytest

from vipllava_jax.evaluation.journal import open_journal

SETTINGS = {'model': 'a', 'fit': None, 'data': 'd', 'weights': 'w'}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'deep' / 'answers.jsonl'


def write(path, *numbers, settings=SETTINGS, restart=False):
    with open_journal(path, settings, restart) as journal:
        before = [*journal.records]
        journal.append(answer(n) for n in numbers)
        return before


def answer(n, **changes):
    return {
        'n': n,
        'id': 'x',
        'task': 'rows',
        'question': 'What?',
        'answer': 'ä',
        'finished': True,
        **changes,
    }


def numbers(path):
    return [json.loads(line)['n'] for line in path.read_text().splitlines()[1:]]


def test_existing_answers_are_read_and_new_ones_appended(path):
    assert write(path, 0, 1) == []
    assert write(path, 1, 2) == [0, 1]
    assert numbers(path) == [0, 1, 2]
    assert json.loads(path.read_text().splitlines()[0]) == {'settings': SETTINGS}
    assert write(path, 5, restart=True) == []
    assert numbers(path) == [5]


def test_an_incomplete_last_line_is_removed(path):
    write(path, 0, 1)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        before = write(path, 7)
        assert before == [0, 1][: max(content[:size].count(b'\n') - 1, 0)]
        assert numbers(path) == [*before, 7]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model': 'b'}, 'model was a and is b'),
        ({'fit': 'pad'}, 'fit was not given and is pad'),
        ({'data': 'e'}, 'other rows in the data'),
        ({'weights': 'v'}, 'other weights in the model'),
    ],
)
def test_other_settings_are_refused_in_one_line(path, changes, message):
    write(path, 0)
    with pytest.raises(ValueError, match=rf'answers.jsonl holds .*\({message}\): .*--restart') as error:
        write(path, settings={**SETTINGS, **changes})
    assert '\n' not in str(error.value)
    assert numbers(path) == [0]
    assert write(path, settings={**SETTINGS, **changes}, restart=True) == []


NOT_ANSWERS = [
    '{"question": "What?"}\n',
    'x',
    '\n',
    '[{"settings": 3}]',
    '{"settings": {"theme": "dark"}}',
    '{"settings": {"theme": "dark"}}\n',
    '{"settings": {"data": "d", "fit": null}, "scores": []}\n',
    '{"settings": []}\n',
    '{"settings": 3}\n',
    '{"settings": null}\n',
    '{"settings": {"data": "other',
    '{"settings": ' + '[' * 5000 + '\n',
    '\0' * 100,
    '{\n  "settings": {"data": "d", "fit": null}\n}\n',
]


@pytest.mark.parametrize('text', NOT_ANSWERS)
@pytest.mark.parametrize('restart', [False, True])
def test_a_file_of_another_type_is_refused_and_unchanged(path, text, restart):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match='is not a file of answers'):
        write(path, 0, restart=restart)
    assert path.read_text() == text


def without(name):
    return {key: value for key, value in answer(1).items() if key != name}


DAMAGED = [
    ('junk', 'not JSON'),
    ('[1]', r'found \[1\], expected an object'),
    ('3', 'found 3'),
    ('', 'not JSON'),
    ('\0\0', 'not JSON'),
    ('[' * 5000, 'not JSON'),
    (f'{{"n": {"9" * 5000}}}', 'not JSON'),
    (json.dumps({'settings': SETTINGS}), '"n" is missing, expected a number from 0 to 8'),
    (json.dumps(answer('1')), """"n" is '1', expected a number"""),
    (json.dumps(answer(True)), '"n" is True'),
    (json.dumps(answer(1.0)), '"n" is 1.0'),
    (json.dumps(answer(-1)), '"n" is -1'),
    (json.dumps(answer(9)), '"n" is 9, expected a number from 0 to 8'),
    (json.dumps(answer(10**400)), '"n" is a whole number of 401 digits'),
    *((json.dumps(without(name)), f'"{name}" is missing') for name in answer(0)),
    *((json.dumps({**answer(1), name: None}), f'"{name}" is None') for name in answer(0)),
    *((json.dumps({**answer(1), name: [3]}), f'"{name}" is .3.') for name in answer(0)),
]


@pytest.mark.parametrize(('line', 'message'), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_refused_by_field_and_restart_empties_the_file(path, line, message):
    write(path, 0)
    path.write_text(path.read_text() + line + '\n' + json.dumps(answer(2)) + '\n{"n": 3, "cu')
    before = path.read_text()
    message = rf'answers.jsonl, line 3 is damaged: .*{message}.*--restart'
    with pytest.raises(ValueError, match=message) as error, open_journal(path, SETTINGS, False, 9):
        pass
    assert str(error.value).isprintable()
    assert path.read_text() == before, 'nothing is cut off a file that is refused'
    assert write(path, 1, restart=True) == []


def test_a_file_with_other_settings_keeps_its_incomplete_line(path):
    write(path, 0)
    path.write_text(path.read_text() + '{"n": 3, "cu')
    before = path.read_text()
    with pytest.raises(ValueError, match='holds answers with other settings'):
        write(path, settings={**SETTINGS, 'model': [{'deep': [1]}]})
    assert path.read_text() == before


def test_anything_but_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    for target, found in ((tmp_path / 'fifo', 'FIFO'), (tmp_path, 'folder'), ('/dev/null', 'device')):
        for restart in (True, False):
            with pytest.raises(ValueError, match=f'expected a regular file, found a {found}'):
                write(target, restart=restart)


def test_a_link_to_a_missing_file_is_followed(path, tmp_path):
    path.parent.mkdir()
    (tmp_path / 'link').symlink_to(path)
    assert write(tmp_path / 'link', 0) == []
    assert write(path, 1) == [0]
    assert numbers(path) == [0, 1]


def test_a_full_disk_leaves_no_new_file(path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'write', full)
    with pytest.raises(OSError, match='No space left'):
        write(path, 0)
    monkeypatch.undo()
    assert not path.exists()


def test_a_full_disk_is_an_error_with_the_path_and_leaves_complete_lines(path, monkeypatch):
    write(path, 0)
    before, real = path.read_bytes(), os.write

    def full(file, data):
        if len(data) > 8:
            return real(file, data[:8])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', full)
        with pytest.raises(OSError, match='No space left .*answers.jsonl'):
            write(path, 1)
    assert path.read_bytes() == before
    assert write(path, 1) == [0]
    assert numbers(path) == [0, 1]


def test_a_second_process_is_refused(path):
    with open_journal(path, SETTINGS, False), pytest.raises(ValueError, match='another process'):
        write(path)
    assert write(path) == []


def test_without_a_file_answers_are_kept_in_memory():
    with open_journal(None, SETTINGS, False) as journal:
        journal.append([{'n': 3}])
        assert journal.records == {3: {'n': 3}}
