"""The options for pictures and marks, drawing marks, and saving pictures."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vipllava_jax.files import check_output, replacing
from vipllava_jax.messages import brief, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.inputs.marks import Mark


ENDINGS = {
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
    'A mark, SHAPE:X1,Y1,X2,Y2:COLOR, in pixels or fractions of the picture; X,Y for a point, more pairs '
    'for a polygon; :alpha=N, :width=N, :units=pixel may follow; 2/ in front: the second image. Repeatable.'
)
mark_option = click.option('--mark', 'marks', metavar='SPEC', multiple=True, help=MARK_HELP)


def drawn(
    paths: Sequence[str], specs: Sequence[str], seed: int | None = None
) -> 'tuple[list[Image], list[Mark]]':
    """The pictures at the paths with the marks of the specs drawn on them, and those marks in order."""
    from vipllava_jax.inputs import marks as marks_
    from vipllava_jax.inputs.images import open_image
    from vipllava_jax.inputs.mark_syntax import parse_mark

    parsed = [parse_mark(spec) for spec in specs]
    if specs and not paths:
        raise ValueError('there is no picture for the --mark: add --image FILE')
    for spec, (i, _) in zip(specs, parsed, strict=True):
        if i >= len(paths):
            raise ValueError(f'mark {brief(spec)}: there is no image {i + 1}, only {len(paths)}')
    images = []
    for i, path in enumerate(paths):
        own = [mark for at, mark in parsed if at == i]
        images.append(marks_.draw(path, own, seed=seed) if own else open_image(path))
    return images, [mark for _, mark in parsed]


def phrased(question: str, marks: 'Sequence[Mark]') -> str:
    """The question with {mark}, {mark1}, {mark2}, … replaced by the phrases of the marks."""

    def phrase(match: re.Match[str]) -> str:
        number = match[1].lstrip('0') if match[1] else '1'
        if not number or len(number) > 6 or int(number) > len(marks):
            there = 'is 1 mark' if len(marks) == 1 else f'are {len(marks)} marks'
            raise ValueError(f'the question says {brief(match[0])[1:-1]}, but there {there}: add --mark')
        return marks[int(number) - 1].phrase

    return re.sub(r'\{mark([0-9]*)\}', phrase, question)


def check_saving(path: str, sources: Sequence[str | Path]) -> None:
    """Raises ValueError or OSError if a picture cannot be saved there, or is one of the inputs."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(f'{path}: end the name in .png or .jpg')
    check_output(Path(path), [Path(source) for source in sources])


def save(picture: 'Image', path: str, sources: Sequence[str | Path] = ()) -> None:
    """Writes a picture in the format of the path's suffix; `sources` are the inputs, files and folders.

    The file is replaced atomically. Raises the errors of `check_saving` before anything is written.
    """
    check_saving(path, sources)
    format = ENDINGS[Path(path).suffix.lower()]
    content = io.BytesIO()
    try:
        picture.save(content, format, quality=95)  # for JPEG; other formats ignore it
    except (ValueError, OSError) as error:
        size = f'{picture.width}x{picture.height}'
        raise ValueError(
            f'{path}: {format} cannot hold a picture of {size} ({one_line(error)}): end the name in .png'
        ) from error
    with replacing(Path(path)) as fresh:
        fresh.write_bytes(content.getvalue())
