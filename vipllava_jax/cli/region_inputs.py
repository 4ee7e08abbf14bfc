"""Reads the picture and the regions of `vipllava regions`, and checks them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vipllava_jax.cli.paths import STDIN
from vipllava_jax.cli.rows import report_broken_rows
from vipllava_jax.cli.stdin import read_picture
from vipllava_jax.messages import brief, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.data.coco import AnnotatedPicture
    from vipllava_jax.inputs.marks import Mark


class RegionsOfPicture(NamedTuple):
    """A picture, its regions in the order of the file, without the broken ones, and their marks."""

    picture: 'Image'
    name: str  # of the picture's file
    marks: 'list[Mark]'
    indices: list[int]  # of the regions in the file, from 0
    annotations: list[dict[str, Any]] | None  # of the regions, if the file is in COCO's format
    source: 'AnnotatedPicture | None'  # what that file says of the picture


def read_inputs(
    image: str,
    coco: str | None,
    boxes: str | None,
    image_id: str | None,
    categories: Sequence[str],
    shape: str,
    skip_broken: bool,
) -> RegionsOfPicture:
    """The picture and its regions; ValueError for files of another form, and lists the broken regions."""
    from vipllava_jax.data.coco import read_annotations
    from vipllava_jax.data.region_files import PlacedRegion, read_regions
    from vipllava_jax.inputs.images import open_image

    if (coco is None) == (boxes is None):
        raise ValueError('give the regions with either --coco FILE or --boxes FILE')
    if coco is None and (image_id is not None or categories):
        raise ValueError(f'{"--image-id" if image_id is not None else "--category"} needs --coco')
    source = None
    if coco is not None:
        source = read_annotations(Path(coco), image, image_id, categories)
        regions = [
            PlacedRegion(f'{coco}, annotation {entry.get("id", n)}', entry)
            for n, entry in enumerate(source.annotations)
        ]
    else:
        regions = read_regions(Path(str(boxes)))
    picture = read_picture() if image == STDIN else open_image(image)
    if source:
        check_size(source.image or {}, picture.size, str(coco), image)
    marks, indices = find_marks(regions, shape, picture.size, skip_broken)
    annotations = [source.annotations[n] for n in indices] if source else None
    return RegionsOfPicture(picture, Path(image).name, marks, indices, annotations, source)


def check_size(entry: dict[str, Any], size: tuple[int, int], coco: str, image: str) -> None:
    """Raises ValueError if a file states another size of the picture."""
    stated = entry.get('width') or size[0], entry.get('height') or size[1]
    if stated != size:
        turned = ' (turned upright if its EXIF data says so)' if stated == size[::-1] else ''
        raise ValueError(
            f'{coco}: the picture has {"x".join(map(brief, stated))} pixels there, but {image} has '
            f'{size[0]}x{size[1]}{turned}: give the picture that was annotated, or another --image-id'
        )


def find_marks(
    regions: Sequence[Any], shape: str, size: tuple[int, int], skip_broken: bool
) -> 'tuple[list[Mark], list[int]]':
    """The marks of regions in a file, and the indices of those regions; the broken ones are reported."""
    from vipllava_jax.answering.region_marks import region_mark
    from vipllava_jax.data.row_checks import raise_unless_skipped
    from vipllava_jax.inputs.marks import MAX_MARKS

    if len(regions) > MAX_MARKS:
        raise ValueError(f'there are {len(regions)} regions, expected at most {MAX_MARKS}: split the file')
    marks, indices, errors = [], [], []
    for n, region in enumerate(regions):
        try:
            marks.append(region_mark(region.value, shape, size))
            indices.append(n)
        except ValueError as error:
            errors.append(printable(f'{region.where}: {error}'))
    with report_broken_rows():
        skipped = raise_unless_skipped(errors, len(regions), skip_broken, 'regions')
    for line in skipped:
        click.echo(printable(f'vipllava: left out: {line}'), err=True)
    if len(errors) > len(skipped):
        click.echo(f'vipllava: {len(errors)} regions were left out in total', err=True)
    return marks, indices
