"""Reads annotations in the format of COCO: of a picture in a file, and as marks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.data.marking import bounds, in_pixels, valid_polygons
from vipllava_jax.data.masks import decode_mask, mask_polygons
from vipllava_jax.data.row_values import check_values
from vipllava_jax.files import check_encoding, read_bytes
from vipllava_jax.inputs.coordinates import flatten, read_numbers
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.messages import brief, listed, one_line, printable

MAX_BYTES = 1 << 30  # of a file; the largest one of COCO has 470 MB
BOX_SHAPES = ('rectangle', 'ellipse', 'arrow')  # are placed by the box, the others by the outline
ANNOTATION_KEYS = ('bbox', 'segmentation')


class AnnotatedPicture(NamedTuple):
    """What a file says of one picture."""

    image: dict[str, Any] | None  # its entry in "images"; None if the file is a list of detections
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def annotation_mark(annotation: Mapping[str, Any], shape: str, size: tuple[int, int]) -> Mark:
    """The mark of a shape for an annotation of a picture of (width, height) pixels.

    Rectangles, ellipses and arrows have the place of its `bbox`; the other shapes that of its `segmentation`,
    polygons or a run-length encoded mask, if it has one. Raises ValueError for an invalid or missing place.
    """
    box, outline = annotation.get('bbox'), annotation.get('segmentation')
    polygons: tuple[Any, ...] = ()
    if outline is not None and (box is None or shape not in BOX_SHAPES):
        polygons = _polygons(outline, shape, size)
    if box is None and not polygons:
        raise ValueError(
            'it has no bbox and no segmentation with an area: leave it out'
            if outline is not None
            else 'it has neither "bbox" nor "segmentation": give one of them'
        )
    return Mark(shape, box=None if box is None else _corners(box), polygon=polygons or None, units='pixel')


def _corners(box: Any) -> tuple[float, ...]:
    """x, y, width, height -> x1, y1, x2, y2"""
    x, y, width, height = read_numbers(box, 4, 'a bbox has x, y, width, height')
    if width <= 0 or height <= 0:
        raise ValueError(f'bbox {brief(box)} has no area: a bbox has x, y, width, height')
    return x, y, x + width, y + height


def _polygons(outline: Any, shape: str, size: tuple[int, int]) -> tuple[Any, ...]:
    """The polygons of a segmentation; a line of a mask's outline may cross the mask unless it is drawn."""
    if isinstance(outline, Mapping):
        return tuple(mask_polygons(decode_mask(outline, size), holes=shape == 'mask contour'))
    return valid_polygons(outline)


def read_annotations(
    path: Path, picture: str, image_id: str | None = None, categories: Sequence[str] = ()
) -> AnnotatedPicture:
    """The annotations of a picture, given by its file name or its id, in a file in COCO's format.

    The file is an object with "images" and "annotations", or a list of detections with "image_id". With
    `categories`, only annotations of these names. Raises ValueError, naming the file, if it has another form
    or no annotation of the picture, and says which pictures it has.
    """
    content = _read(path)
    if isinstance(content, list):
        entries, images, known = content, None, []
    else:
        entries, images = _objects(content, 'annotations', path), _objects(content, 'images', path)
        known = _objects(content, 'categories', path) if 'categories' in content else []
    image = None if images is None else _find_image(images, picture, image_id, path)
    number = image_id if image is None else image.get('id')
    if image is None and number is None:
        number = _only_id(entries, path)
    chosen = [entry for entry in entries if str(entry.get('image_id')) == str(number)]
    if not chosen:
        raise ValueError(f'{path} has no annotation of the picture with the id {brief(number)}')
    if categories:
        chosen = _of_categories(chosen, categories, known, path)
    try:
        check_values({'images': image, 'categories': known, 'annotations': chosen})
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return AnnotatedPicture(image, chosen, known)


def _read(path: Path) -> Any:
    """The object or the list of objects in a JSON file."""
    if not path.exists():
        raise FileNotFoundError(f'no file of annotations {str(path)!r}: check the path')
    data = read_bytes(path, MAX_BYTES)
    check_encoding(path, data[:4])
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}: not JSON ({one_line(error)}): expected annotations as in COCO') from None
    is_list = isinstance(content, list) and all(isinstance(entry, dict) for entry in content)
    if not is_list and not (isinstance(content, dict) and {'images', 'annotations'} <= {*content}):
        raise ValueError(
            f'{path}: expected an object with "images" and "annotations", or a list of detections, as in '
            f'COCO; found {brief(content)}; boxes in other forms are read with --boxes'
        )
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} is not a number in JSON')


def _objects(content: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    entries = content[name]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path}: "{name}" is {brief(entries)}, expected a list of objects')
    return entries


def _find_image(
    images: list[dict[str, Any]], picture: str, image_id: str | None, path: Path
) -> dict[str, Any]:
    """The entry of a picture: that with the id or the file name, or the only one."""
    if image_id is not None:
        found = [entry for entry in images if str(entry.get('id')) == image_id]
        wanted = f'with the id {brief(image_id)}'
    else:
        name = Path(picture).name
        named = [entry for entry in images if Path(str(entry.get('file_name'))).name == name]
        found = images if len(images) == 1 else named
        wanted = f'named {brief(name)}'
    if len(found) == 1:
        return found[0]
    names = [f'{brief(entry.get("file_name"))} with the id {brief(entry.get("id"))}' for entry in images[:3]]
    raise ValueError(
        f'{path} has {len(found) or "no"} picture{"s" if len(found) > 1 else ""} {wanted}: give --image-id '
        f'with the id of one of its {len(images)} pictures ({printable(listed(names, 3), 250)})'
    )


def _only_id(entries: list[dict[str, Any]], path: Path) -> Any:
    """The id of the only picture in a list of detections."""
    ids = [*dict.fromkeys(str(entry.get('image_id')) for entry in entries)]
    if len(ids) != 1:
        raise ValueError(
            f'{path} has detections in {len(ids)} pictures: give --image-id with the id of one of them'
            + (f' ({listed([brief(id) for id in ids], 3)})' if ids else '')
        )
    return ids[0]


def _of_categories(
    entries: list[dict[str, Any]], names: Sequence[str], known: list[dict[str, Any]], path: Path
) -> list[dict[str, Any]]:
    """The annotations of the categories with these names."""
    ids: dict[str, str] = {}
    for name in names:
        ids |= {str(category.get('id')): name for category in known if category.get('name') == name}
        if name not in ids.values():
            shown = listed([brief(category.get('name')) for category in known], 5) or 'none'
            raise ValueError(f'{path} has no category {brief(name)}: its categories are {shown}')
    chosen = [entry for entry in entries if str(entry.get('category_id')) in ids]
    if not chosen:
        raise ValueError(f'{path}: the picture has no annotation of the category {", ".join(names)}')
    return chosen


def as_annotation(mark: Mark, size: tuple[int, int]) -> dict[str, Any]:
    """The `bbox`, and with polygons the `segmentation`, of a mark on a picture of (width, height) pixels."""
    mark = in_pixels(mark, size)
    x1, y1, x2, y2 = bounds(mark)
    fields: dict[str, Any] = {'bbox': [x1, y1, x2 - x1, y2 - y1]}
    if mark.polygon:
        fields['segmentation'] = [flatten(polygon) for polygon in mark.polygon]
    return fields


def is_annotation(fields: Mapping[str, Any]) -> bool:
    """Whether an object is an annotation as in COCO."""
    return any(key in fields for key in ANNOTATION_KEYS)
