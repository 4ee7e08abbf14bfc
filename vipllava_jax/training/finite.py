"""Whether weights are numbers: when a model is loaded, when a loss is not finite, and before an export."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.generation.finite import NAMED, not_finite
from vipllava_jax.messages import CheckpointError


class NotFinite(CheckpointError):
    """A loss, a gradient or a weight that is NaN or infinite."""


def named(params: Mapping[str, Any]) -> str:
    """The first weights that hold NaN or infinity, as the subject and verb of a message; '' if none does."""
    odd = not_finite(dict(params))
    more = f' and {len(odd) - NAMED} more' if len(odd) > NAMED else ''
    verb = 'hold' if len(odd) > 1 else 'holds'
    return f'{", ".join(odd[:NAMED])}{more} {verb} NaN or infinity' if odd else ''


def check_loaded(source: Path, params: Mapping[str, Any]) -> None:
    """NotFinite for the weights of a model's folder that are not numbers."""
    if odd := named(params):
        raise NotFinite(f'{source}: {odd}: get a whole copy of it, or convert it again')


def check_result(target: Path, params: Mapping[str, Any]) -> None:
    """NotFinite for a result that would have weights that are not numbers."""
    if odd := named(params):
        raise NotFinite(
            f'{target}: not written, as {odd}: lower learning_rate and train again, with another output'
        )


def checked(target: Path, leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The leaves of a result as they come; NotFinite for the first that is not all numbers."""
    for path, leaf in leaves:
        check_result(target, {path: leaf})
        yield path, leaf
