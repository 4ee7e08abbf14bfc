"""Annotations in COCO's format: their places as marks, and those of one picture in a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_masks import compressed, counts_of
from vipllava_jax.data.coco import annotation_mark, as_annotation, read_annotations
from vipllava_jax.data.marking import clamp_mark
from vipllava_jax.inputs.marks import PREPOSITIONS, Mark, draw

SIZE = (40, 30)
BOX = {'bbox': [10, 5, 12, 9]}
POLYGON = [10, 5, 22, 5, 22, 14]
MASK = np.zeros((30, 40), bool)
MASK[5:14, 10:22] = True
RLE = {'size': [30, 40], 'counts': counts_of(MASK)}


@pytest.mark.parametrize('shape', PREPOSITIONS)
def test_boxes_place_all_shapes(shape):
    assert annotation_mark(BOX, shape, SIZE) == Mark(shape, box=(10, 5, 22, 14), units='pixel')


@pytest.mark.parametrize('shape', ['mask', 'mask contour', 'point', 'triangle', 'scribble'])
def test_outlines_place_the_shapes_that_follow_them(shape):
    box = {'box': (10, 5, 22, 14), 'units': 'pixel'}
    fields = {**BOX, 'segmentation': [POLYGON, [1, 1, 2, 2]]}  # the second is a line, which COCO also has
    assert annotation_mark(fields, shape, SIZE) == Mark(shape, polygon=[POLYGON], **box)
    for rle in (RLE, {**RLE, 'counts': compressed(RLE['counts'])}):
        mark = annotation_mark({**BOX, 'segmentation': rle}, shape, SIZE)
        assert mark == Mark(shape, polygon=[10, 5, 22, 5, 22, 14, 10, 14], **box)


def test_a_mask_with_a_hole_is_drawn_with_the_hole():
    mask = MASK.copy()
    mask[8:12, 13:18] = False
    mark = annotation_mark({'segmentation': {'size': [30, 40], 'counts': counts_of(mask)}}, 'mask', SIZE)
    changed = np.asarray(draw(np.zeros((30, 40, 3), np.uint8), mark)).any(axis=-1)
    assert changed[mask].all()
    assert not changed[9:12, 14:18].any()  # Pillow fills a pixel more to the right and below


def test_the_outline_is_the_place_of_an_annotation_without_a_box():
    mark = annotation_mark({'segmentation': RLE}, 'rectangle', SIZE)
    assert mark.region(SIZE).box == (10, 5, 22, 14)


def test_a_box_is_enough_if_the_outline_has_no_area():
    assert annotation_mark({**BOX, 'segmentation': []}, 'mask', SIZE) == annotation_mark(BOX, 'mask', SIZE)


@pytest.mark.parametrize(
    ('annotation', 'message'),
    [
        ({}, 'neither "bbox" nor "segmentation"'),
        ({'bbox': None, 'segmentation': [[1, 1, 2, 2]]}, 'no bbox and no segmentation with an area'),
        ({'bbox': [10, 5, 0, 9]}, r'bbox \[10, 5, 0, 9\] has no area: a bbox has x, y, width, height'),
        ({'bbox': [10, 5, 9]}, 'found 3 numbers'),
        ({'bbox': [10, 5, 9, 'x']}, "expected numbers, found 'x'"),
        ({'bbox': [0, 0, float('nan'), 1]}, 'must be finite'),
        ({'segmentation': {**RLE, 'size': [9, 9]}}, 'a mask has the size'),
        ({'segmentation': 'x'}, 'expected a list of polygons'),
    ],
)
def test_invalid_annotations_are_errors(annotation, message):
    with pytest.raises(ValueError, match=message):
        annotation_mark(annotation, 'mask', SIZE)


@pytest.mark.parametrize(
    'mark',
    [
        Mark('rectangle', box=(0.25, 0.2, 0.5, 0.5)),
        Mark('rectangle', box=(39, 0, 40, 30)),
        Mark('mask', polygon=POLYGON),
        Mark('mask', polygon=[0, 0, 1, 0, 1, 1], box=(0, 0, 0.5, 0.5)),
    ],
)
def test_a_mark_as_an_annotation_has_the_same_place(mark):
    again = annotation_mark(as_annotation(mark, SIZE), mark.shape, SIZE)
    assert clamp_mark(again, SIZE).region(SIZE) == mark.region(SIZE)


IMAGES = [{'id': 7, 'file_name': 'train/a.jpg'}, {'id': 8, 'file_name': 'b.jpg'}]
ANNOTATIONS = [
    {'id': 1, 'image_id': 7, 'category_id': 1, **BOX},
    {'id': 2, 'image_id': 8, 'category_id': 1, **BOX},
    {'id': 3, 'image_id': 7, 'category_id': 2, **BOX},
]
CATEGORIES = [{'id': 1, 'name': 'dog'}, {'id': 2, 'name': 'cat'}]
FILE = {'images': IMAGES, 'annotations': ANNOTATIONS, 'categories': CATEGORIES}


def written(folder: Path, content) -> Path:
    path = folder / 'instances.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ('content', 'arguments', 'ids'),
    [
        (FILE, ('x/a.jpg',), [1, 3]),
        (FILE, ('other.jpg', '8'), [2]),
        (FILE, ('a.jpg', None, ['cat']), [3]),
        ({'images': IMAGES[:1], 'annotations': ANNOTATIONS}, ('other.jpg',), [1, 3]),
        (ANNOTATIONS, ('a.jpg', '7'), [1, 3]),
        (ANNOTATIONS[1:2], ('a.jpg',), [2]),
    ],
)
def test_the_annotations_of_a_picture_are_found_by_its_name_or_id(tmp_path, content, arguments, ids):
    found = read_annotations(written(tmp_path, content), *arguments)
    assert [annotation['id'] for annotation in found.annotations] == ids
    assert (found.image is None) == isinstance(content, list)


@pytest.mark.parametrize(
    ('content', 'arguments', 'message'),
    [
        (FILE, ('c.jpg',), r"no picture named 'c\.jpg': give --image-id .*'train/a\.jpg' with the id 7"),
        (FILE, ('a.jpg', '9'), "no picture with the id '9'"),
        ({**FILE, 'images': [*IMAGES, *IMAGES]}, ('a.jpg',), '2 pictures named'),
        ({**FILE, 'annotations': []}, ('a.jpg',), 'no annotation of the picture with the id 7'),
        (FILE, ('a.jpg', None, ['cow']), "no category 'cow': its categories are 'dog', 'cat'"),
        (FILE, ('b.jpg', None, ['cat']), 'no annotation of the category cat'),
        (ANNOTATIONS, ('a.jpg',), 'detections in 2 pictures: give --image-id'),
        ([], ('a.jpg',), 'detections in 0 pictures'),
        ([1], ('a.jpg',), 'found'),
        ({'boxes': []}, ('a.jpg',), 'boxes in other forms are read with --boxes'),
        ({**FILE, 'images': {}}, ('a.jpg',), r'"images" is \{\}, expected a list of objects'),
        ('{', ('a.jpg',), 'not JSON'),
        ('[' * 10**5, ('a.jpg',), 'not JSON'),
        ('[{"image_id": NaN}]', ('a.jpg',), 'NaN is not a number'),
        ('[{"image_id": 1, "x": "\\ud800"}]', ('a.jpg',), 'half of a surrogate pair'),
    ],
)
def test_files_of_another_form_are_errors_that_name_them(tmp_path, content, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(written(tmp_path, content), *arguments)
    assert 'instances.json' in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file of annotations'):
        read_annotations(tmp_path / 'none.json', 'a.jpg')
