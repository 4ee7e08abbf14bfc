"""A picture on which regions are marked and numbered, with the text about each beneath it."""

import bisect
import dataclasses
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from vipllava_jax.data.marking import in_pixels
from vipllava_jax.inputs.marks import COLORS, Mark, draw
from vipllava_jax.messages import printable

MAX_REGIONS = 200  # more would make a picture that is too large to be read
MAX_TEXT = 400  # characters per region; a longer text is shortened in the middle
MAX_LINES = 6  # per region; with the other bounds, the picture is not too high for JPEG
SIDES = (720, 1600)  # pixels of the longer side, to which the picture is enlarged or reduced
WIDTH = 640  # pixels, the least for the texts
DASHES = str.maketrans('–—', '--')
LIGHT = 140  # the luminance from which black is easier to read than white

Box = tuple[float, float, float, float]


def captioned_picture(picture: Image.Image, marks: Sequence[Mark], texts: Sequence[str]) -> Image.Image:
    """A picture, at most MAX_REGIONS marks on it and a text for each -> a picture with the numbered texts.

    The marks have the nine named colours in turn.
    """
    names = [*COLORS]
    colored = [dataclasses.replace(mark, color=names[n % len(names)]) for n, mark in enumerate(marks)]
    scale = min(max(1, SIDES[0] / max(picture.size)), SIDES[1] / max(picture.size))
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    if scale > 1:  # the marks are drawn afterwards, so that their lines are sharp
        larger = picture.resize(size, Image.Resampling.LANCZOS)
        marked = draw(larger, [in_pixels(mark, picture.size, size) for mark in colored])
    else:
        marked = draw(picture, colored).resize(size, Image.Resampling.LANCZOS)
    width = max(marked.width, WIDTH)
    pen = Pen(max(round(width / 50), 15))
    sheet, tags = ImageDraw.Draw(marked), list[Box]()
    for n, mark in enumerate(colored):
        x1, y1, x2, y2 = (side * scale for side in mark.region(picture.size).box)
        tags.append(pen.place(pen.tag_size(n), (x1, y1, x2, y2), size, tags))
        pen.tag(sheet, tags[-1], n)
    texts_below = _legend(pen, texts, width)
    page = Image.new('RGB', (width, marked.height + texts_below.height), 'white')
    page.paste(marked)
    page.paste(texts_below, (0, marked.height))
    return page


def _legend(pen: 'Pen', texts: Sequence[str], width: int) -> Image.Image:
    """The numbers and texts beneath one another, on a picture of this width."""
    lines = [pen.paragraph(text, width - pen.indent - pen.size) for text in texts]
    line_height = round(1.4 * pen.size)
    heights = [line_height * max(len(several), 1) + pen.size // 2 for several in lines]
    page = Image.new('RGB', (width, pen.size + sum(heights)), 'white')
    sheet, left, top = ImageDraw.Draw(page), pen.size // 2, pen.size
    sheet.line((0, 0, width, 0), 'gray')  # the picture above may be white as well
    for n, (several, height) in enumerate(zip(lines, heights, strict=True)):
        tag_width, tag_height = pen.tag_size(n)
        pen.tag(sheet, (left, top, left + tag_width, top + tag_height), n)
        for i, line in enumerate(several):
            sheet.text((pen.indent, top + i * line_height + pen.size // 8), line, 'black', pen.font)
        top += height
    return page


class Pen:
    """Writes numbers and text in one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.font = ImageFont.load_default(size)
        self._missing = bytes(self.font.getmask('\uffff'))
        self.indent = round(self.tag_size(MAX_REGIONS)[0] + size)  # of the texts, in pixels

    def tag_size(self, n: int) -> tuple[float, float]:
        """The width and height of the tag of the region with index n, whose number is n + 1."""
        return self.font.getlength(str(n + 1)) + 0.6 * self.size, 1.3 * self.size

    def tag(self, sheet: ImageDraw.ImageDraw, box: Box, n: int) -> None:
        """Draws a number on its colour."""
        rgb = [*COLORS.values()][n % len(COLORS)]
        red, green, blue = rgb
        ink = 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > LIGHT else 'white'
        sheet.rectangle(box, fill=rgb, outline='black')
        sheet.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), str(n + 1), ink, self.font, anchor='mm')

    def place(self, size: tuple[float, float], region: Box, limits: tuple[int, int], taken: list[Box]) -> Box:
        """The box of a tag at a region: at the first of some places that is free, or at the first."""
        (width, height), (x1, y1, x2, y2) = size, region
        corners = (
            (x1, y1 - height),
            (x1, y1),
            (x2 - width, y1),
            (x1, y2),
            (x2 - width, y2 - height),
            (x2, y1),
        )
        boxes = [
            (x, y, x + width, y + height)
            for x, y in ((_inside(x, width, limits[0]), _inside(y, height, limits[1])) for x, y in corners)
        ]
        return next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])

    def paragraph(self, text: str, width: float) -> list[str]:
        """The lines of a text, none wider than `width` pixels; at most MAX_LINES."""
        lines = [*itertools.islice(self.wrapped(self.legible(text), width), MAX_LINES + 1)]
        return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], '…']

    def legible(self, text: str) -> str:
        """A text on one line in the characters of the font: accents are left out, other scripts are '?'."""
        return ''.join(
            c if self._has(c) else self._plain(c) for c in printable(text.translate(DASHES), MAX_TEXT)
        )

    def _plain(self, character: str) -> str:
        parts = [c for c in unicodedata.normalize('NFKD', character) if not unicodedata.combining(c)]
        return ''.join(parts) if parts and all(map(self._has, parts)) else '?'

    def _has(self, character: str) -> bool:
        """Whether the font has a character, not only a box in its place."""
        return character.isascii() or bytes(self.font.getmask(character)) != self._missing

    def wrapped(self, text: str, width: float) -> Iterator[str]:
        """The lines of a text, none wider than `width` pixels; a longer word is divided."""
        line = ''
        for word in self._short_words(text.split(), width):
            longer = f'{line} {word}' if line else word
            if line and self.font.getlength(longer) > width:
                yield line
                longer = word
            line = longer
        if line:
            yield line

    def _short_words(self, words: Iterable[str], width: float) -> Iterator[str]:
        """The words, with those that are too wide in several parts."""
        for word in words:
            while self.font.getlength(word) > width:
                count = max(self._count_within(word, width), 1)
                yield word[:count]
                word = word[count:]
            yield word

    def _count_within(self, word: str, width: float) -> int:
        """The number of a word's first characters that fit in a width."""
        return bisect.bisect([*range(1, len(word))], width, key=lambda n: self.font.getlength(word[:n]))


def _inside(start: float, length: float, limit: float) -> float:
    """The start of something of this length, moved so that it lies between 0 and the limit."""
    return max(min(start, limit - length), 0)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
