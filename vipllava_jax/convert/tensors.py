"""Tensors in files, and reading them into memory."""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from vipllava_jax.files import check_regular
from vipllava_jax.messages import CheckpointError

READABLE = {'float32': np.dtype('f4'), 'float16': np.dtype('f2'), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
AT_ONCE = 1 << 30  # one system call moves 2 GiB at most
LONGEST_NAME = 1000  # characters of a tensor's name


@dataclass(frozen=True)
class Tensor:
    """The location of a tensor in a file, already checked to lie within the file."""

    file: Path
    offset: int  # of the first element, in bytes
    dtype: str  # NumPy's name, or the file's for a dtype that NumPy lacks
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def place(self) -> tuple[Path, int]:
        return self.file, self.offset

    @property
    def nbytes(self) -> int:
        """Its size in bytes as a contiguous array."""
        return math.prod(self.shape) * READABLE[self.dtype].itemsize

    @property
    def span(self) -> int:
        """The number of bytes from its first element to the end of its last."""
        return extent(self.shape, self.strides) * READABLE[self.dtype].itemsize

    def part(self, index: Sequence[slice]) -> 'Tensor':
        """The part of the tensor that slices of its axes select."""
        first = sum(each.start * stride for each, stride in zip(index, self.strides, strict=True))
        shape = tuple(each.stop - each.start for each in index)
        offset = self.offset + first * READABLE[self.dtype].itemsize
        return dataclasses.replace(self, offset=offset, shape=shape)


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements of its storage a strided tensor spans, from its first to its last."""
    return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def check_views(tensors: Iterable[Tensor], where: str) -> None:
    """Raises CheckpointError for tensors that take much more memory than the bytes that they are views of.

    A tensor of a `.bin` file may repeat its elements, and tensors may share them, as a head tied to the
    embeddings does: a file of a few bytes could exhaust the memory.
    """
    found = sorted(tensors, key=lambda tensor: tensor.place)
    covered, reached = 0, (Path(), 0)
    for tensor in found:
        begin = tensor.offset if tensor.file != reached[0] else max(tensor.offset, reached[1])
        end = max(tensor.offset + tensor.span, begin)
        covered, reached = covered + end - begin, (tensor.file, end)
        if tensor.span > 100 * tensor.nbytes + AT_ONCE:
            raise CheckpointError(
                f'{where}: a tensor of {tensor.nbytes} bytes is spread over {tensor.span} bytes of '
                f'{tensor.file}'
            )
    taken = sum(tensor.nbytes for tensor in found)
    if taken > 2 * covered:
        raise CheckpointError(
            f'{where}: {taken} bytes of weights are repeated views of {covered} bytes in the files; '
            'save copies of the tensors (tensor.clone() in PyTorch)'
        )


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file, links followed, for unbuffered reading.

    Raises CheckpointError, without waiting, for a FIFO, a device or a folder.
    """
    check_regular(path)
    return open(path, 'rb', buffering=0)


def check_not_pointer(path: Path, start: bytes) -> None:
    """Raises CheckpointError if a file, by its first bytes, is a Git LFS pointer."""
    if start.startswith(b'version '):
        raise CheckpointError(f'{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder')


def read_tensor(tensor: Tensor, buffer: memoryview) -> np.ndarray:
    """Reads a tensor into the beginning of a buffer; returns a view of it."""
    (view,) = read_tensor_parts([tensor], buffer)
    return view


def read_tensor_parts(parts: Sequence[Tensor], buffer: memoryview) -> list[np.ndarray]:
    """Reads parts of one tensor into a buffer of the tensor's span; returns views of them.

    Only the bytes from the first element of a part to its last are read. If these ranges overlap, because an
    inner axis of the tensor is divided, they are read once.
    """
    ranges: list[tuple[int, int]] = []  # of bytes in the file, disjoint
    for begin, end in sorted((part.offset, part.offset + part.span) for part in parts):
        if ranges and begin <= ranges[-1][1]:
            begin, end = ranges[-1][0], max(end, ranges.pop()[1])
        ranges.append((begin, end))
    places, at = [], 0
    for begin, end in ranges:
        _read(parts[0].file, begin, buffer[at : at + end - begin])
        places.append((begin, end, at))
        at += end - begin
    dtype = READABLE[parts[0].dtype]
    views = []
    for part in parts:
        position = next(
            at + part.offset - begin
            for begin, end, at in places
            if begin <= part.offset and part.offset + part.span <= end
        )
        flat = np.frombuffer(buffer[position : position + part.span], dtype)
        strides = [stride * dtype.itemsize for stride in part.strides]
        views.append(np.lib.stride_tricks.as_strided(flat, part.shape, strides, writeable=False))
    return views


def _read(path: Path, offset: int, buffer: memoryview) -> None:
    """Fills a buffer with the bytes of a file from an offset on."""
    done = 0
    try:
        with open_regular(path) as file:
            while done < len(buffer):
                got = os.preadv(file.fileno(), [buffer[done : done + AT_ONCE]], offset + done)
                if not got:
                    raise CheckpointError(f'{path}: became shorter while it was read')
                done += got
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None
