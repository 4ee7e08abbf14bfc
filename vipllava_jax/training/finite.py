"""Checks that weights are finite: when a model is loaded, when a loss is not, and before an export."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.generation.finite import describe_not_finite
from vipllava_jax.messages import CheckpointError


class NotFinite(CheckpointError):
    """A loss, a gradient or a weight that is NaN or infinite."""


def check_loaded(source: Path, params: Mapping[str, Any]) -> None:
    """Raises NotFinite if weights of a model's folder hold NaN or infinity."""
    if problem := describe_not_finite(dict(params)):
        raise NotFinite(f'{source}: {problem}: get a complete copy of it, or convert it again')


def check_result(target: Path, params: Mapping[str, Any]) -> None:
    """Raises NotFinite if the weights of a result hold NaN or infinity."""
    if problem := describe_not_finite(dict(params)):
        raise NotFinite(
            f'{target}: not written, because {problem}: lower learning_rate and train again, with another '
            'output'
        )


def check_each(target: Path, leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a result unchanged; raises NotFinite at the first that holds NaN or infinity."""
    for path, leaf in leaves:
        check_result(target, {path: leaf})
        yield path, leaf
