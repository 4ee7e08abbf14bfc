"""Files are read within limits and replaced atomically."""

import os
from pathlib import Path

import pytest

from vipllava_jax import files
from vipllava_jax.files import check_output, parse_bounded_json, read_json
from vipllava_jax.messages import CheckpointError


@pytest.mark.parametrize('text', ['', '{', '[1]', '{"a": NaN', '\xff', '[' * 10_000])
def test_invalid_json_is_an_error(tmp_path, text):
    path = tmp_path / 'x.json'
    path.write_text(text, encoding='latin1')
    with pytest.raises(CheckpointError, match='x.json: ') as raised:
        read_json(path)
    assert '\n' not in str(raised.value)


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / 'fifo.json')
    (tmp_path / 'link.json').symlink_to('fifo.json')
    (tmp_path / 'complete.json').write_text('{"a": 1}')
    (tmp_path / 'to_complete.json').symlink_to('complete.json')
    assert read_json(tmp_path / 'to_complete.json') == {'a': 1}
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
        files.read_bytes(tmp_path / 'complete.json', 7)
    with pytest.raises(CheckpointError, match='cannot be read: No such file'):
        read_json(tmp_path / 'none.json')
    assert read_json(tmp_path / 'none.json', optional=True) == {}


@pytest.mark.parametrize(
    'text', ['[' * 10**6, '{"a":' * 10**5, '{"a": ' + '9' * 5000 + '}', '"\\ud800', '[]', 'null']
)
def test_invalid_json_and_other_values_are_errors(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(CheckpointError, match=r'a\.json: (not JSON|expected a JSON object)'):
        read_json(tmp_path / 'a.json')


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / 'table.json'
    path.write_text('before')
    path.chmod(0o640)
    (tmp_path / 'link.json').symlink_to('table.json')
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, 'x' * 10**5 + '\ud800')
    assert path.read_text() == 'before'
    files.write_text(tmp_path / 'link.json', 'after')
    assert path.read_text() == 'after'
    assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / 'link.json').is_symlink()
    assert sorted(os.listdir(tmp_path)) == ['link.json', 'table.json']
    with pytest.raises(OSError, match=r'No space left.*/dev/full'):
        files.write_text(Path('/dev/full'), 'x')
    with pytest.raises(OSError, match=r'there is no folder.*none/a'):
        files.write_text(tmp_path / 'none' / 'a', 'x')


def test_an_input_is_not_overwritten(tmp_path, monkeypatch):
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
        with pytest.raises(ValueError, match='is also read'):
            check_output(Path(output), [Path('data')])
    check_output(Path('data/new'), [data, Path('data')])
    Path('cache').mkdir()
    Path('cache/blob').write_text('{}')
    Path('data/config.json').symlink_to('../cache/blob')
    with pytest.raises(ValueError, match='is also read'):
        check_output(Path('cache/blob'), [Path('data')])
    with pytest.raises(ValueError, match='is also read'):
        check_output(Path('dangling'), [data, Path('data/new')])
    with pytest.raises(OSError, match='is a folder'):
        check_output(Path('data'), [])
    with pytest.raises(OSError, match='there is no folder'):
        check_output(Path('none/x'), [])


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "'a' occurs twice in one object"),
        (b'{"a": {"x": {}}, "b": {"y": {}, "y": {}}}', "'y' occurs twice"),
        (b'{"a": [{}, {}, {}, {}, {}]}', 'more than 5 objects in its JSON'),
        (b'[' * 10**5, 'nested too deeply'),
        (b'[{}]', 'expected a JSON object, found list'),
        (b'{', 'Expecting property name'),
        (b'\xff', 'utf-8'),
    ],
)
def test_json_of_unknown_origin_is_bounded(data, message):
    with pytest.raises(ValueError, match=message):
        parse_bounded_json(data, max_objects=5)


def test_bounded_json_is_parsed():
    data = b'{"a": [{"b": 1}, {"b": null}]}'
    assert parse_bounded_json(data, max_objects=3) == {'a': [{'b': 1}, {'b': None}]}
