"""Folders that are whole or not there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vipllava_jax import folders
from vipllava_jax.folders import (
    CheckpointError,
    apart,
    beside,
    brief,
    check_output,
    printable,
    read_json,
    safe_answer,
)


def never(folder: Path) -> bool:
    return False


def test_it_appears_at_the_end(tmp_path):
    with beside(tmp_path / 'a' / 'model', 0, never, False) as partial:
        (partial / 'x').write_text('x')
        assert not (tmp_path / 'a' / 'model').exists()
    assert [path.name for path in (tmp_path / 'a').rglob('*')] == ['model', 'x']


def fail(folder: Path, error: BaseException, size: int = 0) -> None:
    with beside(folder, size, never, False) as partial:
        (partial / 'x').write_bytes(bytes(10_000))
        raise error


@pytest.mark.parametrize('error', [KeyboardInterrupt(), ValueError('no'), CheckpointError('no')])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        fail(tmp_path / 'model', error)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_says_how_much_is_missing(tmp_path, monkeypatch):
    free = iter([10**9, 1000])
    monkeypatch.setattr(folders.shutil, 'disk_usage', lambda path: type('Usage', (), {'free': next(free)}))
    with pytest.raises(CheckpointError, match=r'model: the disk is full, 0\.30 MB are missing'):
        fail(tmp_path / 'model', OSError(errno.ENOSPC, 'No space left on device'), 311_000)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='model: cannot be written: (Not a directory|File exists)'):
        fail(tmp_path / 'file' / 'model', ValueError())


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    code = (
        f'import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n'
        'from pathlib import Path; from vipllava_jax.folders import beside\n'
        'with beside(Path(sys.argv[1]), 0, lambda folder: False, False) as partial:\n'
        '    (partial / "x").touch(); print(partial.name, flush=True); sys.stdin.read()'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'model')]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        with pytest.raises(CheckpointError, match='model: another process is writing there'):
            fail(tmp_path / 'model', ValueError('mine'))
        assert (tmp_path / name / 'x').exists()
        process.kill()
    (tmp_path / '.model.partial-of-somebody').touch()
    (tmp_path / '.model2.partial-1').mkdir()
    with beside(tmp_path / 'model', 0, never, False):
        assert not (tmp_path / name).exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        'model',
        '.model.partial-of-somebody',
        '.model2.partial-1',
    }


def test_a_place_that_is_taken_meanwhile(tmp_path):
    slow = beside(tmp_path / 'model', 0, never, False)
    slow.__enter__()
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'x').touch()
    with pytest.raises(CheckpointError, match='model: cannot be written: Directory not empty'):
        slow.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob('*')] == ['model', 'x']


def test_apart(tmp_path):
    apart(tmp_path / 'a', tmp_path / 'ab')
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    for other in ('a', 'a/b', '.', 'a/../a', 'link', 'link/b'):
        with pytest.raises(CheckpointError):
            apart(tmp_path / 'a', tmp_path / other)


@pytest.mark.parametrize('text', ['', '{', '[1]', '{"a": NaN', '\xff', '[' * 10_000])
def test_json_that_is_none(tmp_path, text):
    path = tmp_path / 'x.json'
    path.write_text(text, encoding='latin1')
    with pytest.raises(CheckpointError, match='x.json: ') as told:
        read_json(path)
    assert '\n' not in str(told.value)


def test_messages_are_one_printable_line_of_bounded_length():
    text = printable('a\x1b[31mred\x07 b\n\tc \u202e d \udc80 \x9b ' + 'x' * 10**6 + ' the end: do this')
    assert text.isprintable()
    assert len(text) <= folders.MESSAGE
    assert text.startswith(r'a\x1b[31mred\x07 b c \u202e d \udc80 \x9b x')
    assert text.endswith('the end: do this')
    assert printable('naïve 猫.png') == 'naïve 猫.png'
    assert str(CheckpointError('one\ntwo\x1b')) == r'one two\x1b'


def test_answers_keep_their_lines_and_letters_but_no_commands_to_the_terminal():
    assert safe_answer('a\n\tb 猫 👩‍🚀\x1b[2J\x9b\x00\u202e') == 'a\n\tb 猫 👩‍🚀\\x1b[2J\\x9b\\x00\\u202e'


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (10**5000, 'a whole number of 5001 digits'),
        ('x\x1b' * 10**6, "'x"),
        ([[[1]]], 'a list of 1 entries'),
        ({str(i): i for i in range(10**5)}, 'an object of 100000 entries'),
        ([1, 'a', None], "[1, 'a', None]"),
        ({'a': 1}, "{'a': 1}"),
        (float('nan'), 'nan'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_described_briefly(value, expected):
    assert brief(value).startswith(expected)
    assert len(brief(value)) < 100
    assert brief(value).isprintable()


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / 'fifo.json')
    (tmp_path / 'link.json').symlink_to('fifo.json')
    (tmp_path / 'whole.json').write_text('{"a": 1}')
    (tmp_path / 'to_whole.json').symlink_to('whole.json')
    assert read_json(tmp_path / 'to_whole.json') == {'a': 1}
    for name, found in (
        ('fifo.json', 'FIFO'),
        ('link.json', 'FIFO'),
        ('.', 'folder'),
        ('/dev/zero', 'device'),
    ):
        for optional in (False, True):
            with pytest.raises(CheckpointError, match=f'expected a regular file, found a {found}'):
                read_json(tmp_path / name, optional=optional)
    with pytest.raises(CheckpointError, match='larger than 0.00 MB'):
        folders.read_bytes(tmp_path / 'whole.json', 7)
    with pytest.raises(CheckpointError, match='cannot be read: No such file'):
        read_json(tmp_path / 'none.json')
    assert read_json(tmp_path / 'none.json', optional=True) == {}


@pytest.mark.parametrize(
    'text', ['[' * 10**6, '{"a":' * 10**5, '{"a": ' + '9' * 5000 + '}', '"\\ud800', '[]', 'null']
)
def test_json_that_is_none_or_no_object_is_a_message(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(CheckpointError, match=r'a\.json: (not JSON|expected a JSON object)'):
        read_json(tmp_path / 'a.json')


def test_a_file_is_replaced_whole_or_keeps_what_it_had(tmp_path):
    path = tmp_path / 'table.json'
    path.write_text('before')
    path.chmod(0o640)
    (tmp_path / 'link.json').symlink_to('table.json')
    with pytest.raises(UnicodeEncodeError):
        folders.write_text(path, 'x' * 10**5 + '\ud800')
    assert path.read_text() == 'before'
    folders.write_text(tmp_path / 'link.json', 'after')
    assert path.read_text() == 'after'
    assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / 'link.json').is_symlink()
    assert sorted(os.listdir(tmp_path)) == ['link.json', 'table.json']
    with pytest.raises(OSError, match=r'No space left.*/dev/full'):
        folders.write_text(Path('/dev/full'), 'x')
    with pytest.raises(OSError, match=r'there is no folder.*none/a'):
        folders.write_text(tmp_path / 'none' / 'a', 'x')


def test_no_output_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('data').mkdir()
    data = Path('data/d.jsonl')
    data.write_text('{}')
    Path('soft').symlink_to(data)
    Path('hard').hardlink_to(data)
    Path('there').symlink_to('data')
    Path('dangling').symlink_to('data/new')
    for output in (data, 'soft', 'hard', 'there/d.jsonl', 'data/../data/./d.jsonl', tmp_path / data):
        with pytest.raises(ValueError, match='is also read'):
            check_output(Path(output), [Path('elsewhere'), data])
    check_output(Path('data/new'), [data])
    with pytest.raises(ValueError, match='is also read'):
        check_output(Path('dangling'), [data, Path('data/new')])
    with pytest.raises(OSError, match='is a folder'):
        check_output(Path('data'), [])
    with pytest.raises(OSError, match='there is no folder'):
        check_output(Path('none/x'), [])


def test_folders_are_apart_by_whatever_path(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'link').symlink_to('a')
    apart(tmp_path / 'a', tmp_path / 'c')
    for source, target in (
        ('a', 'link'),
        ('a', 'link/b'),
        ('link/b', 'a'),
        ('a', 'a/../a/new'),
        ('link', 'a/x/y'),
    ):
        with pytest.raises(CheckpointError, match='choose a place beside it'):
            apart(tmp_path / source, tmp_path / target)
