"""Divides cases into batches of few shapes; those about one picture are answered together."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vipllava_jax.inputs.padding import power_of_two
from vipllava_jax.inputs.pixels import Fit

SHARING = 8  # from this many questions about one picture on, they are answered apart from others


class CaseShape(NamedTuple):
    """What decides with which others a case is answered; sorted, similar cases follow one another."""

    fit: Fit | str  # '': that of the checkpoint
    new_tokens: int
    images: int
    length: int  # of the prompt
    number: int
    pictures: Any  # equal for cases about the same pixels


class CaseBatch(NamedTuple):
    """Cases that are answered together, by number."""

    numbers: tuple[int, ...]
    size: int  # the number of rows; if there are fewer cases, some are repeated
    fit: Fit | None
    max_new_tokens: int
    one_picture: bool = False  # whether all are about the same pictures with the same marks


def divide(shapes: Sequence[CaseShape], batch: int, context: int) -> Iterator[CaseBatch]:
    """Batches of at most `batch` cases, of similar length or about one picture.

    They depend on the cases alone.
    """
    for (fit, new), group in itertools.groupby(sorted(shapes), key=lambda shape: shape[:2]):
        cases = [*group]
        new = min(new, context - max(case.length for case in cases))
        about_one, rest = _apart(cases, batch)
        for part in _parts(rest, batch):
            yield CaseBatch(_numbers(part), min(batch, len(rest)), fit or None, new)
        for part in about_one:
            yield CaseBatch(_numbers(part), min(batch, power_of_two(len(part))), fit or None, new, True)


def _apart(cases: list[CaseShape], batch: int) -> tuple[list[list[CaseShape]], list[CaseShape]]:
    """Parts of SHARING cases or more about one picture, and all other cases."""
    by_pictures: dict[Any, list[CaseShape]] = {}
    for case in cases:
        by_pictures.setdefault(case.pictures, []).append(case)
    about_one = [
        part
        for same in by_pictures.values()
        for part in _parts(same, batch)
        if same[0].images and len(part) >= SHARING
    ]
    apart = {case.number for part in about_one for case in part}
    return about_one, [case for case in cases if case.number not in apart]


def _parts(cases: list[CaseShape], size: int) -> Iterator[list[CaseShape]]:
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def _numbers(cases: list[CaseShape]) -> tuple[int, ...]:
    return tuple(case.number for case in cases)
