"""Answers on the disk: gone on with, cut where they were cut off, refused if they are another's."""

import json

import pytest

from vipllava_jax.evaluation.journal import opened

SETTINGS = {'model': 'a', 'fit': None, 'data': 'd', 'weights': 'w'}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'deep' / 'answers.jsonl'


def write(path, *numbers, settings=SETTINGS, restart=False):
    with opened(path, settings, restart) as journal:
        before = [*journal.records]
        journal.append({'n': n, 'said': 'ä'} for n in numbers)
        return before


def numbers(path):
    return [json.loads(line)['n'] for line in path.read_text().splitlines()[1:]]


def test_it_goes_on_where_it_ended(path):
    assert write(path, 0, 1) == []
    assert write(path, 1, 2) == [0, 1]
    assert numbers(path) == [0, 1, 2]
    assert json.loads(path.read_text().splitlines()[0]) == {'settings': SETTINGS}
    assert write(path, 5, restart=True) == []
    assert numbers(path) == [5]


def test_whatever_was_cut_off_is_left_out(path):
    write(path, 0, 1)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        before = write(path, 7)
        assert before == [0, 1][: max(whole[:size].count(b'\n') - 1, 0)]
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
def test_another_ones_is_refused_in_a_line(path, changes, message):
    write(path, 0)
    with pytest.raises(ValueError, match=rf'answers.jsonl holds .*\({message}\): .*--restart') as error:
        write(path, settings={**SETTINGS, **changes})
    assert '\n' not in str(error.value)
    assert numbers(path) == [0]
    assert write(path, settings={**SETTINGS, **changes}, restart=True) == []


@pytest.mark.parametrize('text', ['{"question": "What?"}\n', 'x', '\n', '[{"settings": 3}]'])
@pytest.mark.parametrize('restart', [False, True])
def test_a_file_that_is_none_of_ours_stays_as_it_is(path, text, restart):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match='is no file of answers'):
        write(path, 0, restart=restart)
    assert path.read_text() == text


@pytest.mark.parametrize('line', ['junk', '[1]', '{"m": 1}', '3'])
def test_a_damaged_file_can_be_begun_anew(path, line):
    write(path, 0)
    path.write_text(path.read_text() + line + '\n')
    with pytest.raises(ValueError, match='is damaged: .*--restart'):
        write(path)
    assert write(path, 1, restart=True) == []


def test_one_process_writes_at_a_time(path):
    with opened(path, SETTINGS, False), pytest.raises(ValueError, match='another process'):
        write(path)
    assert write(path) == []


def test_without_a_file_answers_are_kept_all_the_same():
    with opened(None, SETTINGS, False) as journal:
        journal.append([{'n': 3}])
        assert journal.records == {3: {'n': 3}}
