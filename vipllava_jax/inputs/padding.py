"""Pads the rows of a batch, which differ in length and in their number of images, to arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


def round_up(length: int, multiple: int) -> int:
    """The smallest positive multiple that is at least `length`."""
    return max(-(-length // multiple), 1) * multiple


def power_of_two(length: int, smallest: int = 1) -> int:
    """The smallest power of two that is at least `length` and `smallest`, itself a power of two."""
    return max(smallest, 1 << max(length - 1, 0).bit_length())


def pad_ids(rows: Sequence[Sequence[int] | np.ndarray], length: int, fill: int) -> np.ndarray:
    """The ids of each row -> BT int32, T `length`, padded with `fill` on the right."""
    padded = np.full((len(rows), length), fill, np.int32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    return padded


def pad_images(
    rows: Sequence[Sequence[np.ndarray]], side: int, dtype: DTypeLike, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The images hw3 of each row -> BIhw3, zeros beyond; their numbers B.

    I is `most`, by default the largest number of a row.
    """
    counts = np.array([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), counts.max() if most is None else most, side, side, 3), dtype)
    for b, row in enumerate(rows):
        for i, image in enumerate(row):
            padded[b, i] = image
    return padded, counts
