"""Prepares the prompt of a question: draws marks on its images, and inserts their phrases into its text."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from PIL import Image

from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import Mark, draw
from vipllava_jax.messages import brief

MARK = re.compile(r'\{mark([0-9]*)\}')
Marks = Mark | str | Iterable[Mark | str]


def image_list(image: ImageSource | Sequence[ImageSource] | None) -> list[Any]:
    """The images of a question, of which there may be none, one or several."""
    return [] if image is None else [*image] if isinstance(image, list | tuple) else [image]


def mark_images(
    images: Sequence[ImageSource], marks: Marks, seed: int | None = None
) -> tuple[list[Image.Image], list[Mark]]:
    """The opened images with the marks drawn on them, and the marks in order.

    Raises the errors of `place_marks`, `open_image` and `draw`.
    """
    placed = place_marks(marks, len(images))
    drawn = []
    for i, image in enumerate(images):
        of_image = [mark for index, mark in placed if index == i]
        drawn.append(draw(image, of_image, seed) if of_image else open_image(image))
    return drawn, [mark for _, mark in placed]


def place_marks(marks: Marks, image_count: int) -> list[tuple[int, Mark]]:
    """The marks in order, each with the index of the image that it is on.

    A string is parsed as by `parse_mark`: with '2/' at its start it is drawn on the second image. All other
    marks are drawn on the first. Raises ValueError for a mark that is invalid or on an image that does not
    exist, and TypeError for something that is not a mark.
    """
    placed = [parse_mark(mark) if isinstance(mark, str) else (0, mark) for mark in mark_list(marks)]
    if placed and not image_count:
        raise ValueError('there is a mark but no image: give the image that it is on (--image FILE)')
    for index, mark in placed:
        if index >= image_count:
            count = 'is 1 image' if image_count == 1 else f'are {image_count} images'
            raise ValueError(f'mark {mark.quoted()} is on image {index + 1}, but there {count}')
    return placed


def mark_list(marks: Marks) -> list[Mark | str]:
    """The marks of a question, of which one may stand alone; TypeError for what is not a mark."""
    several = [marks] if isinstance(marks, Mark | str) else marks
    if not isinstance(several, Iterable):
        raise TypeError(f'expected a mark or a list of marks, found {brief(marks)}')
    listed = [*several]
    for mark in listed:
        if not isinstance(mark, Mark | str):
            raise TypeError(f'expected a Mark, or a string such as point:40,60:red, found {brief(mark)}')
    return listed


def insert_phrases(
    text: str,
    marks: Sequence[Mark],
    name: str = 'the question',
    advice: str = 'add one (marks=[…], --mark SPEC)',
) -> str:
    """The text with {mark} or {mark1}, {mark2}, … replaced by the phrases of the marks.

    Raises ValueError, which calls the text by its name, for the number of a mark that is not there.
    """

    def phrase(match: re.Match[str]) -> str:
        number = match[1].lstrip('0') if match[1] else '1'
        if not number or len(number) > 6 or int(number) > len(marks):
            count = 'is 1 mark' if len(marks) == 1 else f'are {len(marks)} marks'
            raise ValueError(f'{name} says {brief(match[0])[1:-1]}, but there {count}: {advice}')
        return marks[int(number) - 1].phrase

    return MARK.sub(phrase, text)


@contextlib.contextmanager
def single_prompt() -> Iterator[None]:
    """Removes the number of the row from the messages of errors about the only prompt of a batch."""
    try:
        yield
    except ValueError as error:
        raise type(error)(str(error).removeprefix('row 0: ')) from None
