"""Prepares the pictures of questions: the work of a worker process, and how it answers.

The files may be hostile, so what a worker sends is plain bytes of known sizes and never a pickle: a fault in
a decoder of pictures does not reach the process of the model. This module does not import jax.
"""

import contextlib
import hashlib
import os
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.marks import Mark, draw
from vipllava_jax.inputs.pixels import Fit, ImageSettings, marks_cut_off, uint8_pixels
from vipllava_jax.messages import one_line, printable

HEADER = struct.Struct('<BI')  # one of PREPARED and REFUSED, and the bytes of the text that follows
PREPARED, REFUSED = 0, 1
DIGEST_BYTES = hashlib.sha256().digest_size
MAX_WARNINGS = 100  # the maximum per question
MAX_TEXT = 1 << 20  # bytes of warnings, or of an error
MAX_MEMORY = 4 << 30  # bytes of address space; the largest picture takes 1.7 GiB, as JPEG 2000


class PictureTask(NamedTuple):
    """The pictures of a question, and what is done with them."""

    sources: tuple[ImageSource, ...]
    names: tuple[str, ...]  # by which messages call the pictures
    marks: tuple[tuple[Mark, ...], ...]  # of each picture
    fit: Fit | None


class Prepared(NamedTuple):
    """The pictures of a question, as the model takes them."""

    pixels: np.ndarray  # Ihw3 uint8, which `ImageSettings.normalize` takes
    digests: tuple[bytes, ...]  # I SHA-256 of the pixels
    warnings: tuple[str, ...]  # of marks that the crop cuts off


class WorkerSettings(NamedTuple):
    """What a worker process is told first."""

    images: ImageSettings
    seconds: int  # the maximum per task, after which the process ends itself
    max_pixels: int | None  # of a picture, as `PIL.Image.MAX_IMAGE_PIXELS`


def prepare(task: PictureTask, settings: ImageSettings, max_pixels: int | None = None) -> Prepared:
    """Opens, marks and resizes pictures; raises the errors of `open_image` and `draw`."""
    prepared, warnings = [], []
    for source, name, marks in zip(task.sources, task.names, task.marks, strict=True):
        image = open_image(source, name, max_pixels)
        if marks:
            image = _draw(image, marks, name)
        for mark in marks_cut_off(image, settings, task.fit):
            warnings.append(f"the crop cuts off the mark {mark} on {name}: fit='pad' keeps the whole image")
        prepared.append(uint8_pixels(image, settings, task.fit))
    stacked = np.stack(prepared)
    digests = tuple(hashlib.sha256(picture.data).digest() for picture in stacked)
    return Prepared(stacked, digests, tuple(warnings[:MAX_WARNINGS]))


def _draw(image: Image.Image, marks: Sequence[Mark], name: str) -> Image.Image:
    try:
        return draw(image, marks)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from None


def serve() -> None:
    """The main loop of a worker process, until its parent closes the pipe or ends."""
    source, target, sys.stdout = sys.stdin.buffer, sys.stdout.buffer, sys.stderr
    settings: WorkerSettings = pickle.load(source)
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_memory()
    with contextlib.suppress(EOFError, pickle.UnpicklingError, BrokenPipeError):
        while True:
            task = pickle.load(source)
            signal.alarm(settings.seconds)  # ends the process, even if the parent is gone
            _answer(target, task, settings.images)
            del task  # which holds pictures while the process waits
            signal.alarm(0)


def limit_memory() -> None:
    """Limits the memory of this process, which pictures of the largest size leave enough of."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    known = [limit for limit in (soft, hard, MAX_MEMORY) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))


def _answer(target: IO[bytes], task: PictureTask, settings: ImageSettings) -> None:
    try:
        prepared = prepare(task, settings)
    except Exception as error:
        text = message_of(error).encode()
        target.write(HEADER.pack(REFUSED, len(text)) + text)
        target.flush()
        return
    text = '\n'.join(printable(warning) for warning in prepared.warnings).encode()
    target.write(HEADER.pack(PREPARED, len(text)) + text + b''.join(prepared.digests))
    target.write(prepared.pixels.data)
    target.flush()


def message_of(error: Exception) -> str:
    """The message of an error for the user, or what another error is."""
    if isinstance(error, MemoryError):
        return 'the pictures need too much memory: make them smaller first'
    if isinstance(error, ValueError | TypeError | FileNotFoundError):
        return printable(str(error))
    if isinstance(error, OSError) and error.errno and error.filename:
        return printable(f'{error.filename!r} cannot be opened: {os.strerror(error.errno)}')
    return f'the pictures cannot be prepared: {one_line(error)}'


def read_answer(source: Any, count: int, side: int) -> Prepared | str:
    """Reads what a worker has written for `count` pictures: them, or why they cannot be prepared.

    Raises EOFError if it ends before, and ValueError if it is something else.
    """
    kind, size = HEADER.unpack(_read(source, HEADER.size))
    if kind not in (PREPARED, REFUSED) or size > MAX_TEXT:
        raise ValueError('the answer has another form')
    text = bytes(_read(source, size)).decode(errors='replace')
    if kind == REFUSED:
        return printable(text)
    digests = bytes(_read(source, DIGEST_BYTES * count))
    found = np.empty((count, side, side, 3), np.uint8)
    _read_into(source, found.reshape(-1).data)
    each = (digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES))
    return Prepared(found, tuple(each), tuple(map(printable, text.splitlines())))


def _read(source: Any, size: int) -> bytearray:
    buffer = bytearray(size)
    _read_into(source, memoryview(buffer))
    return buffer


def _read_into(source: Any, buffer: memoryview) -> None:
    received = 0
    while received < len(buffer):
        count = source.readinto(buffer[received:])
        if not count:
            raise EOFError
        received += count
