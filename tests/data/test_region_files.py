"""Files of boxes and marks are read in each of their forms; errors name the line."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.data.region_files import read_regions

BOXES = [[20.0, 40.0, 140.0, 160.0], [1.0, 2.0, 3.0, 4.5]]
MARK = {'shape': 'ellipse', 'box': [1, 2, 3, 4]}


def values(tmp_path, content):
    path = tmp_path / 'boxes.txt'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [region.value for region in read_regions(path)]


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('20,40,140,160\n1,2,3,4.5\n', BOXES),
        ('x1, y1, x2, y2\r\n20, 40, 140, 160\r\n\r\n1,2,3,4.5', BOXES),
        (json.dumps(BOXES, indent=1), BOXES),
        ('[20,40,140,160]\n[1,2,3,4.5]', BOXES),
        ('[20,40,140,160]', BOXES[:1]),
        (json.dumps(MARK), [MARK]),
        (
            f'{json.dumps(MARK)}\n"point:1,2"\npoint:1,2\n1,2,3,4.5',
            [MARK, 'point:1,2', 'point:1,2', BOXES[1]],
        ),
        ('\ufeff20,40,140,160', BOXES[:1]),
    ],
)
def test_the_forms(tmp_path, text, expected):
    assert values(tmp_path, text) == expected


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'has no regions'),
        ('[]', 'has no regions'),
        ('x1,y1,x2,y2\n', 'has no regions'),
        ('1,2,3,4\n1,2,x,4', r"line 2: found '1,2,x,4': expected a box"),
        ('1,2,3,4\n\n{"box": }', 'line 3: not JSON'),
        ('[1,2,3,4]\n{}x', 'line 2: not JSON'),
        ('[[1,2,3,4], 7]', 'region 1: found 7'),
        ('"x', 'line 1: not JSON'),
        ('"\\ud800"', 'line 1: .* half of a surrogate pair'),
        ('[' * 10**5, 'line 1: not JSON'),
        ('{"annotations": []}', 'give it with --coco'),
        (b'\xff\xfe1\0', 'is UTF-16'),
        (b'1,2,\xff', 'is not UTF-8 at byte 4'),
    ],
)
def test_files_of_another_form_are_errors_that_name_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        values(tmp_path, text)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    with contextlib.suppress(ValueError):
        assert values(tmp_path_factory.getbasetemp(), data)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file of boxes'):
        read_regions(tmp_path / 'none.csv')
