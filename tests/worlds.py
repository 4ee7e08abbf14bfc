"""Held-out questions about the demo model's world, as rows beside their pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.demo import exam
from vipllava_jax.demo.asking import TYPES


def rows(folder: Path, cases: Iterable[exam.Case]) -> list[dict[str, Any]]:
    """The cases' rows, whose pictures are in the folder now."""
    (folder / 'rows').mkdir()
    return [exam.row(numbered, folder, 'rows') for numbered in enumerate(cases)]


def of_all_types(each: int) -> list[exam.Case]:
    return [case for type in TYPES for case in exam.of_type(type, each)]
