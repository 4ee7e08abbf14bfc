"""Writes held-out questions about the demo model's world, as rows with their pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.demo import exam
from vipllava_jax.demo.question_types import TYPES


def rows(folder: Path, cases: Iterable[exam.Case]) -> list[dict[str, Any]]:
    """The rows of the cases; writes their pictures to the folder."""
    (folder / 'rows').mkdir()
    return [exam.make_row(numbered, folder, 'rows') for numbered in enumerate(cases)]


def of_all_types(each: int) -> list[exam.Case]:
    return [case for type in TYPES for case in exam.of_type(type, each)]
