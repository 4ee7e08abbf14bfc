"""The options for pictures and marks, drawing marks, and saving pictures."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vipllava_jax.cli.paths import STDIN
from vipllava_jax.cli.stdin import read_picture
from vipllava_jax.files import check_output, replacing
from vipllava_jax.messages import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.inputs.marks import Mark


FORMATS = {
    '.png': 'PNG',
    '.jpg': 'JPEG',
    '.jpeg': 'JPEG',
    '.webp': 'WEBP',
    '.bmp': 'BMP',
    '.gif': 'GIF',
    '.tif': 'TIFF',
    '.tiff': 'TIFF',
}
MARK_HELP = (
    'A mark to draw, SHAPE:X1,Y1,X2,Y2:COLOR, such as rectangle:40,60,180,220:red; coordinates are pixels or '
    'fractions of the picture. A point is X,Y; a polygon has three or more pairs. Options such as :alpha=N, '
    ':width=N and :units=pixel may follow. 2/ at the start draws the mark on the second picture. May be '
    'repeated.'
)
mark_option = click.option('--mark', 'marks', metavar='SPEC', multiple=True, help=MARK_HELP)


def mark_pictures(
    paths: Sequence[str], marks: Sequence[str], seed: int | None = None
) -> 'tuple[list[Image], list[Mark]]':
    """The pictures at the paths, '-' for stdin, with the marks drawn on them, and the marks in order."""
    from vipllava_jax.answering.prompts import mark_images

    if paths.count(STDIN) > 1:
        raise ValueError(f'{STDIN} stands for the picture on stdin, of which there is one: give it once')
    return mark_images([read_picture() if path == STDIN else path for path in paths], marks, seed)


def check_picture_output(path: str, inputs: Sequence[str | Path]) -> None:
    """Raises ValueError or OSError if a picture cannot be saved there, or if the path is an input."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f'{path}: expected a name that ends in .png or .jpg')
    check_output(Path(path), [Path(source) for source in inputs if source != STDIN])


def save_picture(picture: 'Image', path: str, inputs: Sequence[str | Path] = ()) -> None:
    """Writes a picture in the format of the path's suffix; `inputs` are files and folders that are read.

    The file is replaced atomically. Raises the errors of `check_picture_output` before anything is written.
    """
    check_picture_output(path, inputs)
    format = FORMATS[Path(path).suffix.lower()]
    content = io.BytesIO()
    try:
        picture.save(content, format, quality=95)  # for JPEG; other formats ignore it
    except (ValueError, OSError) as error:
        size = f'{picture.width}x{picture.height}'
        raise ValueError(
            f'{path}: {format} cannot hold a picture of {size} ({one_line(error)}): use a name that ends '
            'in .png'
        ) from error
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.getvalue())
