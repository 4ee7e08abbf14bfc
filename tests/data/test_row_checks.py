"""All rows are checked before any long work: every broken one is counted, and the first are listed."""

import json

import pytest

from tests.data.samples import HELLO, TALK, region_row, write_lines
from vipllava_jax.data.row_checks import raise_unless_skipped, read_rows

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
    (region_row(conversations=[{'from': 'human', 'value': 5}]), 'turn 0 is .*"value": a string'),
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
    (region_row(image=None, conversations=HELLO), 'it has "bboxes", but no image'),
    (region_row(image='junk.png'), 'is not a picture in a known format'),
    (region_row(bboxes=None, marks=['circle:1,2,3,4']), "unknown shape 'circle'"),
    (region_row(bboxes=None, marks=['2/ellipse:1,2,9,9']), 'is on image 2, but the row has 1'),
    (region_row(bboxes=None, marks='ellipse:1,2,9,9'), 'expected a list of strings'),
]


@pytest.mark.parametrize(('row', 'message'), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_row_is_reported_with_its_line(pictures, row, message):
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
def test_all_broken_rows_are_counted_and_the_first_are_listed(pictures, workers, monkeypatch):
    monkeypatch.setattr('vipllava_jax.data.row_checks.CHUNK', 7)
    good = [region_row(id=f'x-{n}') for n in range(30)]
    path = write_lines(pictures / 'a.jsonl', [*good[:15], *[{'id': 'no'}] * 25, *good[15:]])
    progress = []
    with pytest.raises(ValueError, match='25 of 55 rows are broken, the first 20 of them:') as error:
        read_rows([path], workers=workers, progress=lambda *at: progress.append(at))
    assert [line.split(':')[0][-7:] for line in str(error.value).splitlines()[1:-1]] == [
        f'line {n}' for n in range(16, 36)
    ]
    assert progress == [(n, 55) for n in (7, 14, 21, 28, 35, 42, 49, 55)]
    rows = read_rows([path], workers=workers, skip_broken=True)
    assert (rows.skipped, len(rows.errors)) == (25, 20)
    assert [rows[i].name for i in range(30)] == [f'x-{n}' for n in range(30)]


def test_only_broken_rows_are_an_error_even_if_skipped(tmp_path):
    with pytest.raises(ValueError, match='1 of 1 rows are broken'):
        read_rows([write_lines(tmp_path / 'a.jsonl', [{}])], skip_broken=True)


@pytest.mark.parametrize('skip_broken', [False, True])
def test_skipping_is_advised_only_if_a_row_would_remain(skip_broken):
    with pytest.raises(ValueError, match=r'2 of 2 rows are broken(.|\n)*\nfix them$'):
        raise_unless_skipped(['a', 'b'], 2, skip_broken)
    with pytest.raises(ValueError, match=r'fix them, or leave them out with skip_broken \(--skip-broken\)$'):
        raise_unless_skipped(['a'], 2, False)
