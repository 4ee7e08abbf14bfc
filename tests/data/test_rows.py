"""Rows of all files are located and read; every broken one is reported before any long work."""

import json
import os
import pickle

import numpy as np
import pytest

from tests.data.samples import HELLO, TALK, region_row, write_lines
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.data.rows import BrokenRow


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[{"a": 1},\n {"b": ]', r'l.json, row 1 \(line 2\): not JSON .*get an intact copy'),
        ('[{"a": 1},\n {"b": 2}', r'l.json, row 2 \(line 2\): not JSON .*found the end of the file'),
        ('[{"a": 1},\n {"b": 2},', r'l.json, row 2 \(line 2\): not JSON .*found the end of the file'),
        ('[{"a": 1},\n {"b": 2', r'l.json, row 1 \(line 2\): not JSON'),
        ('[{"a": 1},\n {"b": "2', r'l.json, row 1 \(line 2\): not JSON'),
        ('[', r'l.json, row 0 \(line 1\): not JSON .*found the end of the file'),
        ('\n[\n\n', r'l.json, row 0 \(line 4\): not JSON .*found the end of the file'),
        ('[1, 2]', r"l.json, row 0 \(line 1\): not JSON \(expected an object, found b'1, 2\]'"),
        ('[[{}]]', r'l.json, row 0 \(line 1\): not JSON \(expected an object'),
        ('[{"a": 1}\n\n{"b": 2}]', r'l.json, row 1 \(line 3\): .*expected a comma or the end of the list'),
        ('[{"a": 1}, junk, {"b": 2}]', r'l.json, row 1 \(line 1\): .*expected an object, found .*junk'),
        ('[{"a": 1} junk, {"b": 2}]', r'l.json, row 1 \(line 1\): .*expected a comma .*junk'),
        ('[{"a": 1},\n, {"b": 2}]', r'l.json, row 1 \(line 2\): .*expected an object'),
        ('[, {"a": 1}]', r'l.json, row 0 \(line 1\): .*expected an object'),
        ('[{"a": 1},\n]', r'l.json, row 1 \(line 2\): .*expected an object'),
        ('[{"a": 1}\n]\n[{"b": 2}]\n', r"l.json, line 3: b'\[.* follows the list, and would not be read"),
        ('[{"a": 1}]\n\n{"b": 2}\n', r'l.json, line 3: .* follows the list'),
        ('[{"a": 1}]]', r'l.json, line 1: .* follows the list'),
        ('[{"a": 1}],', r'l.json, line 1: .* follows the list'),
        ('[{"a": 1}]\n\0', r'l.json, line 2: .* follows the list'),
        ('[{"a": 1}]\ufeff[{"a": 1}]', r'l.json, line 1: .* follows the list'),
        ('[]\n[{"a": 1}]', r'l.json, line 2: .* follows the list'),
        ('[]', 'l.json has no rows'),
        ('', 'l.json has no rows'),
    ],
)
def test_an_invalid_list_is_an_error_with_the_line(tmp_path, text, message):
    (tmp_path / 'l.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows([tmp_path / 'l.json'])


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-le', 'utf-32-be'])
@pytest.mark.parametrize('text', ['[{"a": 1}]', '{"a": 1}\n', '\ufeff{"a": 1}\n', '\n[{}]'])
def test_another_encoding_is_an_error_that_says_how_to_convert(tmp_path, encoding, text):
    (tmp_path / 'l.json').write_bytes(text.encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(ValueError, match=f'l.json: is {name}, expected UTF-8: .*iconv -f {name}'):
        read_rows([tmp_path / 'l.json'])


def test_a_byte_order_mark_is_ignored(tmp_path):
    row = json.dumps({'id': 'a', 'conversations': HELLO})
    for text in (
        f'[{row},\n{row}]',
        f'{row}\n{row}\n',
        f'{row}\n\ufeff{row}\n',
        '\n' * 70_000 + f'[{row},{row}]',
    ):
        (tmp_path / 'l.json').write_text('\ufeff' + text, 'utf-8')
        assert len(read_rows([tmp_path / 'l.json'])) == 2


def test_special_files_are_errors(pictures):
    os.mkfifo(pictures / 'fifo')
    for name, file_type in (
        ('fifo', 'a FIFO'),
        ('.', 'a folder'),
        ('/dev/null', 'a device'),
        ('/dev/zero', 'a device'),
    ):
        with pytest.raises(ValueError, match=f'expected a regular file, found {file_type}'):
            read_rows([pictures / name])


def test_latin_1_text_is_an_error_with_the_line(tmp_path):
    (tmp_path / 'l.jsonl').write_bytes('{"id": "ä"}\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='line 1: not JSON .*utf-8'):
        read_rows([tmp_path / 'l.jsonl'])


NESTED = '[' * 5000 + ']' * 5000
UNUSUAL = [
    (f'"bboxes": {NESTED}', 'nested'),
    (f'"bboxes": {"[" * 99 + "]" * 99}', '"bboxes" is nested more than 64 levels deep'),
    (f'"bboxes": [[1, 2, 3, {"9" * 400}]]', '.'),
    (f'"bboxes": [[1, 2, 3, {"9" * 5000}]]', 'digits'),
    (f'"n": {"9" * 5000}', 'digits'),
    ('"image": ' + json.dumps(['a.png'] * 256), '"image" holds 256 pictures, expected at most 255'),
    ('"image": "a\\u0000.png"', 'no picture at'),
    (f'"image": "{"a" * 5000}"', 'File name too long'),
    ('"image": "fifo"', 'expected a regular file, found a FIFO'),
    ('"image": "/dev/zero"', 'expected a regular file, found a device'),
    ('"image": "."', 'expected a regular file, found a folder'),
    ('"id": [1]', '"id" is'),
    ('"id": "\\ud800"', '"id" holds half of a surrogate pair, .*ud800.* at character 0'),
    ('"image": "a\\udcff.png"', '"image" holds half'),
    ('"image": ["a.png", "\\uD9ab"]', '"image.1" holds half'),
    ('"conversations": [{"from": "human", "value": "x\\uDFFF"}]', '"conversations.0.value" holds half'),
    ('"label": {"deep": [["\\ude00\\ud83d"]]}', '"label.deep.0.0" holds half'),
    ('"\\ud800": 1', 'half of a surrogate pair'),
]


@pytest.mark.parametrize(('fields', 'message'), UNUSUAL, ids=range(len(UNUSUAL)))
@pytest.mark.parametrize('listed', [True, False])
def test_unusual_values_make_a_broken_row_that_can_be_skipped(pictures, fields, message, listed):
    os.mkfifo(pictures / 'fifo')
    good = json.dumps(region_row())
    bad = f'{good[:-1]}, {fields}}}'  # of two values with the same name, the second counts
    lines = [good, bad, good]
    (pictures / 'a.json').write_text('[' + ',\n'.join(lines) + ']' if listed else '\n'.join(lines))
    with pytest.raises(ValueError, match=rf'1 of 3 rows are broken:\n.*line 2\)?: .*{message}') as error:
        read_rows([pictures / 'a.json'])
    assert all(line.isprintable() and len(line) <= 500 for line in str(error.value).splitlines())
    assert len(read_rows([pictures / 'a.json'], skip_broken=True)) == 2


def test_surrogate_pairs_are_valid_text(pictures):
    face = [{**turn, 'value': turn['value'] + '\U0001f600'} for turn in TALK]
    path = pictures / 'a.jsonl'
    path.write_text(json.dumps(region_row(conversations=face, id='\U0001f600')))
    assert read_rows([path])[0].name == '\U0001f600'


def test_a_row_that_is_too_large_is_not_read(pictures, monkeypatch):
    monkeypatch.setattr('vipllava_jax.data.row_offsets.MAX_ROW_BYTES', 600)
    monkeypatch.setattr('vipllava_jax.data.row_offsets.WINDOW_BYTES', 64)
    monkeypatch.setattr('vipllava_jax.data.rows.MAX_ROW_BYTES', 600)
    rows = [region_row(), region_row(note='[{"' * 900), region_row()]
    for path in (pictures / 'a.jsonl', pictures / 'a.json'):
        path.write_text('\n'.join(map(json.dumps, rows)) if path.suffix == '.jsonl' else json.dumps(rows))
        with pytest.raises(ValueError, match='bytes or more, expected at most 600'):
            read_rows([path])
        assert len(read_rows([path], skip_broken=True)) == 2


def test_sizes_and_lines_beyond_32_bits_are_errors(pictures, monkeypatch):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    monkeypatch.setattr('vipllava_jax.data.rows.locate_rows', lambda path: iter([(0, 2**32 + 5, 1)]))
    with pytest.raises(ValueError, match='line 1: 2,147,483,647 bytes or more'):
        read_rows([path])
    monkeypatch.setattr('vipllava_jax.data.rows.locate_rows', lambda path: iter([(0, 5, 2**31)]))
    with pytest.raises(ValueError, match='more than 2,147,483,647 lines'):
        read_rows([path])


def test_too_many_files_are_an_error(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    with pytest.raises(ValueError, match='256 data files: give from 1 to 255'):
        read_rows([path] * 256)
    assert len(read_rows([path] * 255)) == 255


def test_rows_of_several_files_have_locations(pictures):
    lines = write_lines(pictures / 'a.jsonl', [region_row(), region_row(id=None, image=['a.png', 'b.jpg'])])
    listed = pictures / 'b.json'
    listed.write_text(json.dumps([{'id': 7, 'conversations': TALK[:0] + HELLO}], indent=1))
    rows = read_rows([lines, listed], pictures)
    assert len(rows) == 3
    assert [row.name for row in map(rows.__getitem__, range(3))] == ['x-1', f'{lines}, line 2', '7']
    assert rows[2].where == f'{listed}, row 0 (line 2)'
    assert rows[1].images == (pictures / 'a.png', pictures / 'b.jpg')
    assert rows[2].images == ()
    assert rows.image_counts.tolist() == [1, 2, 0]
    assert rows.text_lengths[0] == len('What is within the red rectangle?A dog.')
    again = pickle.loads(pickle.dumps(rows))
    assert again[0] == rows[0]


def test_the_default_folder_of_pictures_is_that_of_the_file(pictures):
    assert read_rows([write_lines(pictures / 'a.jsonl', [region_row()])])[0].images == (pictures / 'a.png',)


def test_wrong_paths_are_errors(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    with pytest.raises(FileNotFoundError, match="no data file '.*none.json'"):
        read_rows([path, pictures / 'none.json'])
    with pytest.raises(FileNotFoundError, match="no folder of pictures '.*none'"):
        read_rows([path], pictures / 'none')
    with pytest.raises(ValueError, match='0 data files'):
        read_rows([])


def test_a_file_that_changes_after_indexing_is_an_error(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    rows = read_rows([path])
    path.write_text('x' * path.stat().st_size)
    with pytest.raises(BrokenRow, match='line 1: not JSON'):
        rows[0]


def test_the_index_takes_26_bytes_per_row(pictures):
    rows = read_rows([write_lines(pictures / 'a.jsonl', [region_row()] * 50)])
    arrays = [value for value in vars(rows).values() if isinstance(value, np.ndarray)]
    assert sum(value.itemsize for value in arrays) == 26
    assert all(value.base is None for value in arrays)
