"""Rows of all files are found and read; every broken one is reported before any long work."""

import json
import os
import pickle

import numpy as np
import pytest

from tests.data.samples import TALK, region_row, write_lines
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.data.rows import BrokenRow


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[{"a": 1},\n {"b": ]', r'l.json, row 1 \(line 2\): not JSON .*get a whole copy'),
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
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path, text, message):
    (tmp_path / 'l.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows([tmp_path / 'l.json'])


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-le', 'utf-32-be'])
@pytest.mark.parametrize('text', ['[{"a": 1}]', '{"a": 1}\n', '\ufeff{"a": 1}\n', '\n[{}]'])
def test_another_encoding_is_named_with_what_to_do(tmp_path, encoding, text):
    (tmp_path / 'l.json').write_bytes(text.encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(ValueError, match=f'l.json: is {name}, expected UTF-8: .*iconv -f {name}'):
        read_rows([tmp_path / 'l.json'])


def test_a_byte_order_mark_is_dropped(tmp_path):
    row = json.dumps({'id': 'a', 'conversations': plain()})
    for text in (
        f'[{row},\n{row}]',
        f'{row}\n{row}\n',
        f'{row}\n\ufeff{row}\n',
        '\n' * 70_000 + f'[{row},{row}]',
    ):
        (tmp_path / 'l.json').write_text('\ufeff' + text, 'utf-8')
        assert len(read_rows([tmp_path / 'l.json'])) == 2


def test_whatever_is_no_file_is_refused_at_once(pictures):
    os.mkfifo(pictures / 'fifo')
    for name, found in (
        ('fifo', 'a FIFO'),
        ('.', 'a folder'),
        ('/dev/null', 'a device'),
        ('/dev/zero', 'a device'),
    ):
        with pytest.raises(ValueError, match=f'expected a regular file, found {found}'):
            read_rows([pictures / name])


def test_rows_of_text_that_is_latin_1_are_named(tmp_path):
    (tmp_path / 'l.jsonl').write_bytes('{"id": "ä"}\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='line 1: not JSON .*utf-8'):
        read_rows([tmp_path / 'l.jsonl'])


NESTED = '[' * 5000 + ']' * 5000
ODD = [
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


@pytest.mark.parametrize(('odd', 'message'), ODD, ids=range(len(ODD)))
@pytest.mark.parametrize('listed', [True, False])
def test_odd_values_make_a_row_that_is_named_and_can_be_skipped(pictures, odd, message, listed):
    os.mkfifo(pictures / 'fifo')
    good = json.dumps(region_row())
    bad = f'{good[:-1]}, {odd}}}'  # of two values with the same name, the second counts
    lines = [good, bad, good]
    (pictures / 'a.json').write_text('[' + ',\n'.join(lines) + ']' if listed else '\n'.join(lines))
    with pytest.raises(ValueError, match=rf'1 of 3 rows are broken:\n.*line 2\)?: .*{message}') as error:
        read_rows([pictures / 'a.json'])
    assert all(line.isprintable() and len(line) <= 500 for line in str(error.value).splitlines())
    assert len(read_rows([pictures / 'a.json'], skip_broken=True)) == 2


def test_whole_surrogate_pairs_are_text(pictures):
    face = [{**turn, 'value': turn['value'] + '\U0001f600'} for turn in TALK]
    path = pictures / 'a.jsonl'
    path.write_text(json.dumps(region_row(conversations=face, id='\U0001f600')))
    assert read_rows([path])[0].name == '\U0001f600'


def test_a_row_larger_than_any_is_skipped_unread(pictures, monkeypatch):
    monkeypatch.setattr('vipllava_jax.data.row_offsets.MAX_ROW_BYTES', 600)
    monkeypatch.setattr('vipllava_jax.data.row_offsets.WINDOW_BYTES', 64)
    monkeypatch.setattr('vipllava_jax.data.rows.MAX_ROW_BYTES', 600)
    rows = [region_row(), region_row(note='[{"' * 900), region_row()]
    for path in (pictures / 'a.jsonl', pictures / 'a.json'):
        path.write_text('\n'.join(map(json.dumps, rows)) if path.suffix == '.jsonl' else json.dumps(rows))
        with pytest.raises(ValueError, match='bytes or more, expected at most 600'):
            read_rows([path])
        assert len(read_rows([path], skip_broken=True)) == 2


def test_a_size_beyond_32_bits_is_no_other_size(pictures, monkeypatch):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    monkeypatch.setattr('vipllava_jax.data.rows.locate_rows', lambda path: iter([(0, 2**32 + 5, 1)]))
    with pytest.raises(ValueError, match='line 1: 2,147,483,647 bytes or more'):
        read_rows([path])
    monkeypatch.setattr('vipllava_jax.data.rows.locate_rows', lambda path: iter([(0, 5, 2**31)]))
    with pytest.raises(ValueError, match='more than 2,147,483,647 lines'):
        read_rows([path])


def test_more_files_than_a_row_can_name_are_refused(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    with pytest.raises(ValueError, match='256 data files: give from 1 to 255'):
        read_rows([path] * 256)
    assert len(read_rows([path] * 255)) == 255


def test_rows_of_several_files_know_where_they_are(pictures):
    lines = write_lines(pictures / 'a.jsonl', [region_row(), region_row(id=None, image=['a.png', 'b.jpg'])])
    listed = pictures / 'b.json'
    listed.write_text(json.dumps([{'id': 7, 'conversations': TALK[:0] + plain()}], indent=1))
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


def plain():
    return [{'from': 'human', 'value': 'Hello'}, {'from': 'gpt', 'value': 'Hello.'}]


def test_pictures_lie_beside_the_file_by_default(pictures):
    assert read_rows([write_lines(pictures / 'a.jsonl', [region_row()])])[0].images == (pictures / 'a.png',)


BROKEN = [
    ('not json', 'not JSON'),
    ([1], 'expected a JSON object, found list'),
    (region_row(image='none.png'), "no picture at '.*none.png'"),
    (region_row(image=3), '"image" is 3, expected a path'),
    (region_row(image=['a.png', '']), '"image" is'),
    (region_row(conversations=None), 'it has no conversation'),
    (region_row(conversations=TALK[:1]), 'must take turns'),
    (region_row(conversations=[[], []]), 'turn 0 is '),
    (region_row(conversations=[{'from': ['human'], 'value': 'x'}]), 'turn 0 is .*expected .*"from"'),
    (region_row(conversations=[{'from': 'human', 'value': 5}]), 'turn 0 is .*"value": a text'),
    (region_row(id='pointQA_twice-1', general_question='What?', answer={'a': 1}), '"answer" is'),
    (region_row(bboxes=[[4, 5, 50, 25]]), 'lies outside the picture, which is 40x30 pixels'),
    (region_row(bboxes=[[4, 5, 4.5, 25]]), 'less than a pixel wide'),
    (region_row(bboxes=[[4, 25, 20, 5]]), 'is empty'),
    (region_row(bboxes=[[4, 5, 20]]), 'a box has x1, y1, x2, y2'),
    (region_row(bboxes=[['a', 5, 20, 25]]), 'expected numbers'),
    (region_row(bboxes=[4, 5, 20, 25]), 'expected numbers'),
    (region_row(bboxes=None), r'turn 0 says <bbox0>, but the row has 0 mark\(s\)'),
    (region_row(segmentations=[None, None]), '"segmentations" is a list of|"segmentations" is .*one entry'),
    (region_row(segmentations=[{'counts': 'x'}]), 'run-length encoded'),
    (region_row(segmentations=[3]), r'"segmentations"\[0\]: expected a list of polygons, found 3'),
    (region_row(image=None, conversations=plain()), 'it has "bboxes", but no image'),
    (region_row(image='junk.png'), 'is not a picture in a known format'),
    (region_row(bboxes=None, marks=['circle:1,2,3,4']), "unknown shape 'circle'"),
    (region_row(bboxes=None, marks=['2/ellipse:1,2,9,9']), 'is on image 2, but the row has 1'),
    (region_row(bboxes=None, marks='ellipse:1,2,9,9'), 'expected a list of texts'),
]


@pytest.mark.parametrize(('row', 'message'), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_row_is_told_with_its_line(pictures, row, message):
    (pictures / 'junk.png').write_bytes(b'junk')
    path = pictures / 'a.jsonl'
    path.write_text('\n'.join([json.dumps(region_row()), row if isinstance(row, str) else json.dumps(row)]))
    with pytest.raises(ValueError, match=rf'1 of 2 rows are broken:\n.*a.jsonl, line 2: .*{message}'):
        read_rows([path])
    rows = read_rows([path], skip_broken=True)
    assert len(rows) == 1
    assert rows.skipped == 1
    assert rows[0].where.endswith('line 1')


@pytest.mark.parametrize('workers', [0, 2])
def test_all_broken_rows_are_counted_and_the_first_told(pictures, workers, monkeypatch):
    monkeypatch.setattr('vipllava_jax.data.row_checks.CHUNK', 7)
    good = [region_row(id=f'x-{n}') for n in range(30)]
    path = write_lines(pictures / 'a.jsonl', [*good[:15], *[{'id': 'no'}] * 25, *good[15:]])
    seen = []
    with pytest.raises(ValueError, match='25 of 55 rows are broken, the first 20 of them:') as error:
        read_rows([path], workers=workers, progress=lambda *at: seen.append(at))
    assert [line.split(':')[0][-7:] for line in str(error.value).splitlines()[1:-1]] == [
        f'line {n}' for n in range(16, 36)
    ]
    assert seen == [(n, 55) for n in (7, 14, 21, 28, 35, 42, 49, 55)]
    rows = read_rows([path], workers=workers, skip_broken=True)
    assert (rows.skipped, len(rows.errors)) == (25, 20)
    assert [rows[i].name for i in range(30)] == [f'x-{n}' for n in range(30)]


def test_nothing_but_broken_rows_is_an_error_even_if_they_may_be_skipped(tmp_path):
    with pytest.raises(ValueError, match='1 of 1 rows are broken'):
        read_rows([write_lines(tmp_path / 'a.jsonl', [{}])], skip_broken=True)


def test_wrong_paths_are_told_at_once(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    with pytest.raises(FileNotFoundError, match="no data file '.*none.json'"):
        read_rows([path, pictures / 'none.json'])
    with pytest.raises(FileNotFoundError, match="no folder of pictures '.*none'"):
        read_rows([path], pictures / 'none')
    with pytest.raises(ValueError, match='0 data files'):
        read_rows([])


def test_a_file_that_changed_under_us_is_told(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    rows = read_rows([path])
    path.write_text('x' * path.stat().st_size)
    with pytest.raises(BrokenRow, match='line 1: not JSON'):
        rows[0]


def test_a_row_costs_few_bytes(pictures):
    rows = read_rows([write_lines(pictures / 'a.jsonl', [region_row()] * 50)])
    held = [value for value in vars(rows).values() if isinstance(value, np.ndarray)]
    assert sum(value.itemsize for value in held) == 26
    assert all(value.base is None for value in held)
