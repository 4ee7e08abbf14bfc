"""Reads questions or a picture from stdin, both of bounded size."""

import sys
from typing import TYPE_CHECKING

from vipllava_jax.files import other_encoding

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_TEXT = 1 << 20  # bytes of a question, more than any context, or of a list of questions


def read_text(name: str = 'the question on stdin') -> str:
    """The text on stdin without a byte order mark; ValueError if it is too long or not UTF-8."""
    data = _read(MAX_TEXT)
    if len(data) > MAX_TEXT:
        raise ValueError(f'{name} has more than {MAX_TEXT} bytes: is it the right file?')
    return decode_text(data, name)


def read_line(name: str) -> str | None:
    """The next line on stdin, without its end; None at the end. Raises the errors of `read_text`."""
    source = getattr(sys.stdin, 'buffer', None)
    line = source.readline(MAX_TEXT + 1) if source else sys.stdin.readline(MAX_TEXT + 1).encode()
    if len(line) > MAX_TEXT:
        raise ValueError(f'{name} has more than {MAX_TEXT} bytes: is it the right file?')
    return decode_text(line, name).rstrip('\r\n') if line else None


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 -> a text without a byte order mark; ValueError, with the name of the text, for anything else."""
    if encoding := other_encoding(data[:4]):
        raise ValueError(f'{name} is {encoding}: write it in UTF-8')
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{name} is not UTF-8 at byte {error.start}: write it in UTF-8') from None


def read_picture() -> 'Image':
    """The picture on stdin; ValueError if there is none, or the errors of a file that holds the same."""
    from vipllava_jax.inputs.images import MAX_FILE_BYTES, open_image

    name = 'the picture on stdin'
    if sys.stdin.isatty():
        raise ValueError(f'{name} is missing: pipe one in, or give the path of a file')
    data = _read(MAX_FILE_BYTES)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f'{name} has more than {MAX_FILE_BYTES >> 20} MiB: make it smaller first')
    return open_image(data, name)


def _read(limit: int) -> bytes:
    """The bytes on stdin, at most one more than `limit`."""
    source = getattr(sys.stdin, 'buffer', None)
    return source.read(limit + 1) if source else sys.stdin.read(limit + 1).encode()
