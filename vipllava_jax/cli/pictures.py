"""The options that pictures and marks share, and marks from the line to the picture."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.inputs.marks import Mark


ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
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

    parsed = [marks_.parse(spec) for spec in specs]
    for spec, (i, _) in zip(specs, parsed, strict=True):
        if i >= len(paths):
            raise ValueError(f'mark {spec!r}: there is no image {i + 1}, only {len(paths)}')
    images = []
    for i, path in enumerate(paths):
        own = [mark for at, mark in parsed if at == i]
        images.append(marks_.draw(path, own, seed=seed) if own else open_image(path))
    return images, [mark for _, mark in parsed]


def phrased(question: str, marks: 'Sequence[Mark]') -> str:
    """The question with {mark}, {mark1}, {mark2}, … replaced by the phrases of the marks."""

    def phrase(match: re.Match[str]) -> str:
        n = int(match[1] or 1)
        if not 1 <= n <= len(marks):
            there = 'is 1 mark' if len(marks) == 1 else f'are {len(marks)} marks'
            raise ValueError(f'the question says {match[0]}, but there {there}: add --mark')
        return marks[n - 1].phrase

    return re.sub(r'\{mark(\d*)\}', phrase, question)


def save(picture: 'Image', path: str) -> None:
    """Writes the picture in the format its name ends in; ValueError if that is none."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(f'{path}: end the name in .png or .jpg')
    picture.save(path, quality=95)  # of a JPEG; other formats do not look at it
