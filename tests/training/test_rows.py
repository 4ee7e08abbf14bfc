"""Rows of any file are found and read; every broken one is told, before any long work."""

import json
import pickle

import numpy as np
import pytest

from tests.training.conftest import TALK, region_row, write_lines
from vipllava_jax.training.rows import BrokenRow, read


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[{"a": 1},\n {"b": ]', r'l.json, row 1 \(line 2\): not JSON .*get a whole copy'),
        ('[{"a": 1},\n {"b": 2}', r'l.json, row 2 \(line 2\): not JSON'),
        ('[1, 2]', r"l.json, row 0 \(line 1\): not JSON \(expected an object, found b'1, 2\]'"),
        ('[]', 'l.json has no rows'),
        ('', 'l.json has no rows'),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path, text, message):
    (tmp_path / 'l.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        read([tmp_path / 'l.json'])


def test_rows_of_several_files_know_where_they_are(pictures):
    lines = write_lines(pictures / 'a.jsonl', [region_row(), region_row(id=None, image=['a.png', 'b.jpg'])])
    listed = pictures / 'b.json'
    listed.write_text(json.dumps([{'id': 7, 'conversations': TALK[:0] + plain()}], indent=1))
    rows = read([lines, listed], pictures)
    assert len(rows) == 3
    assert [row.name for row in map(rows.__getitem__, range(3))] == ['x-1', f'{lines}, line 2', '7']
    assert rows[2].where == f'{listed}, row 0 (line 2)'
    assert rows[1].images == (pictures / 'a.png', pictures / 'b.jpg')
    assert rows[2].images == ()
    assert rows.images.tolist() == [1, 2, 0]
    assert rows.letters[0] == len('What is within the red rectangle?A dog.')
    again = pickle.loads(pickle.dumps(rows))
    assert again[0] == rows[0]


def plain():
    return [{'from': 'human', 'value': 'Hello'}, {'from': 'gpt', 'value': 'Hello.'}]


def test_pictures_lie_beside_the_file_by_default(pictures):
    assert read([write_lines(pictures / 'a.jsonl', [region_row()])])[0].images == (pictures / 'a.png',)


BROKEN = [
    ('not json', 'not JSON'),
    ([1], 'expected a JSON object, found list'),
    (region_row(image='none.png'), "no picture at '.*none.png'"),
    (region_row(image=3), '"image" is 3, expected a path'),
    (region_row(image=['a.png', '']), '"image" is'),
    (region_row(conversations=None), 'it has no conversation'),
    (region_row(conversations=TALK[:1]), 'must take turns'),
    (region_row(bboxes=[[4, 5, 50, 25]]), 'lies outside the picture, which is 40x30 pixels'),
    (region_row(bboxes=[[4, 5, 4.5, 25]]), 'less than a pixel wide'),
    (region_row(bboxes=[[4, 25, 20, 5]]), 'is empty'),
    (region_row(bboxes=[[4, 5, 20]]), 'a box has x1, y1, x2, y2'),
    (region_row(bboxes=[['a', 5, 20, 25]]), 'expected numbers'),
    (region_row(bboxes=[4, 5, 20, 25]), 'expected numbers'),
    (region_row(bboxes=None), r'turn 0 says <bbox0>, but the row has 0 mark\(s\)'),
    (region_row(segmentations=[None, None]), '"segmentations" as long a list'),
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
        read([path])
    rows = read([path], skip_broken=True)
    assert len(rows) == 1
    assert rows.left_out == 1
    assert rows[0].where.endswith('line 1')


@pytest.mark.parametrize('workers', [0, 2])
def test_all_broken_rows_are_counted_and_the_first_told(pictures, workers, monkeypatch):
    monkeypatch.setattr('vipllava_jax.training.rows.PART', 7)
    good = [region_row(id=f'x-{n}') for n in range(30)]
    path = write_lines(pictures / 'a.jsonl', [*good[:15], *[{'id': 'no'}] * 25, *good[15:]])
    seen = []
    with pytest.raises(ValueError, match='25 of 55 rows are broken, the first 20 of them:') as error:
        read([path], workers=workers, progress=lambda *at: seen.append(at))
    assert [line.split(':')[0][-7:] for line in str(error.value).splitlines()[1:-1]] == [
        f'line {n}' for n in range(16, 36)
    ]
    assert seen == [(n, 55) for n in (7, 14, 21, 28, 35, 42, 49, 55)]
    rows = read([path], workers=workers, skip_broken=True)
    assert (rows.left_out, len(rows.broken)) == (25, 20)
    assert [rows[i].name for i in range(30)] == [f'x-{n}' for n in range(30)]


def test_nothing_but_broken_rows_is_an_error_even_if_they_may_be_skipped(tmp_path):
    with pytest.raises(ValueError, match='1 of 1 rows are broken'):
        read([write_lines(tmp_path / 'a.jsonl', [{}])], skip_broken=True)


def test_wrong_paths_are_told_at_once(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    with pytest.raises(FileNotFoundError, match="no data file '.*none.json'"):
        read([path, pictures / 'none.json'])
    with pytest.raises(FileNotFoundError, match="no folder of pictures '.*none'"):
        read([path], pictures / 'none')
    with pytest.raises(ValueError, match='0 data files'):
        read([])


def test_a_file_that_changed_under_us_is_told(pictures):
    path = write_lines(pictures / 'a.jsonl', [region_row()])
    rows = read([path])
    path.write_text('x' * path.stat().st_size)
    with pytest.raises(BrokenRow, match='line 1: not JSON'):
        rows[0]


def test_a_row_costs_few_bytes(pictures):
    rows = read([write_lines(pictures / 'a.jsonl', [region_row()] * 50)])
    held = [value for value in vars(rows).values() if isinstance(value, np.ndarray)]
    assert sum(value.itemsize for value in held) == 26
    assert all(value.base is None for value in held)
