"""Rows of files, streams and folders, whole or hostile; each is read on its own."""

import io
import json
import os
import threading
import time

import pytest

from tests.makers import noise
from vipllava_jax.batch_files import sources
from vipllava_jax.batch_files.names import Names
from vipllava_jax.batch_files.picture_folder import FolderRows
from vipllava_jax.batch_files.sources import FileRows, StreamRows
from vipllava_jax.data import row_offsets

ROWS = [
    {'id': 'a', 'prompt': 'Was ist „das“?'},
    {'prompt': 'x\ny', 'n': [1, {'b': 2}]},
    {'id': 3, 'prompt': 'z'},
]
FORMS = {
    'lines': '\n'.join(map(json.dumps, ROWS)) + '\n',
    'without a last newline': '\ufeff' + '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    'list': json.dumps(ROWS),
    'indented list': json.dumps(ROWS, indent=2) + '\n',
}


def named(source):
    names = Names()
    return [names.of_text(row) for row in source.rows() if row]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('streamed', [False, True])
def test_rows_are_the_same_in_all_forms(tmp_path, form, streamed):
    data = FORMS[form].encode()
    (tmp_path / 'rows').write_bytes(data)
    source = StreamRows(io.BytesIO(data), 'stdin') if streamed else FileRows(tmp_path / 'rows')
    found = named(source)
    assert [row.fields for row in found] == ROWS
    number = 3 if form == 'without a last newline' else 2
    assert [row.id for row in found] == ['a', f'line {number}', '3']
    assert not any(row.error for row in found)
    *_, last = FileRows(tmp_path / 'rows').rows()
    assert len(data) - 3 <= last.end <= len(data) == FileRows(tmp_path / 'rows').size


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (b'{', 'not JSON'),
        (b'x' * 300, 'not JSON'),
        (b'3', 'expected a JSON object, found 3'),
        (b'"\xff"', 'not JSON'),
        (b'{"a": NaN}', 'NaN is not a number in JSON'),
        (b'{"a": -Infinity}', 'Infinity is not a number in JSON'),
        (b'{"a": 1e999}', "'1e999' is too large for a number"),
        (b'{"a": ' + b'9' * 5000 + b'}', 'not JSON'),
        (b'{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}', 'nested'),
        (b'{"a": ' + b'[' * 70 + b']' * 70 + b'}', 'nested more than 64 levels'),
        (b'{"a": "\\ud800"}', 'half of a surrogate pair'),
        (b'{"a": [' + b'0,' * 1_000_001 + b'0]}', 'more than 1,000,000 values'),
        (b'{"a": "' + b'x' * 4000 + b'"}', 'has 4,010 bytes, expected at most 3,000'),
    ],
)
@pytest.mark.parametrize('streamed', [False, True])
def test_a_broken_line_is_an_error_of_its_own(tmp_path, monkeypatch, line, message, streamed):
    if 'bytes' in message:
        for module in (sources, row_offsets):
            monkeypatch.setattr(module, 'WINDOW_BYTES', 100)
        monkeypatch.setattr(sources, 'MAX_ROW_BYTES', 3000)
        monkeypatch.setattr('vipllava_jax.batch_files.names.MAX_ROW_BYTES', 3000)
    data = b'{"id": "a"}\n' + line + b'\n{"id": "b"}\n'
    (tmp_path / 'rows.jsonl').write_bytes(data)
    source = StreamRows(io.BytesIO(data), 'stdin') if streamed else FileRows(tmp_path / 'rows.jsonl')
    first, broken, last = named(source)
    assert (first.id, broken.id, last.id) == ('a', 'line 2', 'b')
    assert message in broken.error
    assert not first.error
    assert not last.error


def test_of_a_line_that_is_too_long_only_a_part_is_in_memory(monkeypatch):
    class Endless(io.RawIOBase):
        """A line of 1 GiB, and another one."""

        left, largest = 1 << 30, 0

        def readline(self, size):
            if self.left <= 0:
                self.left, text = self.left - 1, b'\n' if self.left == 0 else b'{"id": "b"}\n'
                return text if self.left > -3 else b''
            self.left -= size
            return b'x' * size

    monkeypatch.setattr(sources, 'MAX_ROW_BYTES', 1 << 21)
    broken, last = (row for row in StreamRows(Endless(), 'stdin').rows() if row)
    assert (broken.size, last.text) == ((1 << 30) + 1, b'{"id": "b"}')
    assert len(broken.text) <= 1 << 21


def test_rows_of_a_stream_arrive_before_it_ends():
    reader, writer = os.pipe()
    with open(reader, 'rb') as stream, open(writer, 'wb', buffering=0) as pipe:
        pipe.write(b'{"id": "a"}\n')
        rows = StreamRows(stream, 'stdin').rows()
        assert next(rows).text == b'{"id": "a"}'
        begin = time.monotonic()
        assert next(rows) is None
        assert time.monotonic() - begin < 1
        timer = threading.Timer(0.2, lambda: (pipe.write(b'{"id": "b"}\n'), pipe.close()))
        timer.start()
        assert [row.text for row in rows if row] == [b'{"id": "b"}']


def test_an_error_of_a_stream_is_raised(tmp_path):
    with pytest.raises(ValueError, match='not JSON'):
        [*StreamRows(io.BytesIO(b'[{"a": 1}, 3'), 'stdin').rows()]


@pytest.mark.parametrize('data', [b'', b'\n \n', b'[]'])
def test_a_source_without_rows_is_an_error(tmp_path, data):
    (tmp_path / 'rows.json').write_bytes(data)
    with pytest.raises(ValueError, match='has no rows'):
        FileRows(tmp_path / 'rows.json')
    with pytest.raises(ValueError, match='has no rows'):
        [*StreamRows(io.BytesIO(data), 'stdin').rows()]


def test_other_encodings_and_special_files_are_refused(tmp_path):
    (tmp_path / 'rows.jsonl').write_text('{"id": "a"}', encoding='utf-16')
    with pytest.raises(ValueError, match='UTF-16'):
        FileRows(tmp_path / 'rows.jsonl')
    with pytest.raises(ValueError, match='stdin is UTF-16'):
        StreamRows(io.BytesIO((tmp_path / 'rows.jsonl').read_bytes()), 'stdin')
    os.mkfifo(tmp_path / 'fifo')
    with pytest.raises(ValueError, match='found a FIFO'):
        FileRows(tmp_path / 'fifo')
    with pytest.raises(FileNotFoundError, match='check the path'):
        FileRows(tmp_path / 'none')


def test_a_fingerprint_tells_files_apart_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'SAMPLE', 10)
    monkeypatch.setattr(sources, 'SAMPLES', 8)
    paths = [tmp_path / name for name in 'abcd']
    for path, text in zip(paths, ('a' * 200, 'a' * 200, 'a' * 199 + 'b', 'b' + 'a' * 199), strict=True):
        path.write_text(text)
    first, same, *others = [FileRows(path).fingerprint() for path in paths]
    assert first == same
    assert first not in others
    assert len({str(other) for other in others}) == 2


def test_a_folder_is_a_row_for_each_picture(tmp_path):
    for name in ('b.PNG', 'a.jpg', 'deep/er/c.webp', '.hidden/d.png', '.e.png', 'notes.txt'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(4, 4).save(path, 'PNG')
    source = FolderRows(tmp_path)
    rows = [json.loads(row.text) for row in source.rows()]
    assert rows == [{'id': name, 'image': name} for name in ('a.jpg', 'b.PNG', 'deep/er/c.webp')]
    assert source.size == 3
    before = source.fingerprint()
    (tmp_path / 'a.jpg').rename(tmp_path / 'a2.jpg')
    assert FolderRows(tmp_path).fingerprint() != before
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='has no pictures'):
        FolderRows(tmp_path / 'empty')
