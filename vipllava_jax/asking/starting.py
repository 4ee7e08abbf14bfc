"""Whether an engine is worth the time that it takes to start, and starting it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.generation.model import Model

MIN_QUESTIONS = 1000  # from which an engine, which compiles for a minute, saves more than that minute


def wants_engine(choice: bool | None, count: int) -> bool:
    """Whether an engine answers `count` questions; a `choice` of None depends on which is earlier done."""
    if choice is not None:
        return choice
    import jax

    return count >= MIN_QUESTIONS and jax.local_devices()[0].platform != 'cpu'


def start_engine(
    model: 'Model', is_needed: bool, progress: Callable[[int, int], None] | None = None, **options: Any
) -> 'Engine | None':
    """An engine; None if the memory has no room for one, unless it `is_needed`, which makes it a ValueError.

    `progress` is called with the numbers of compiled programs and of all.
    """
    from vipllava_jax.engine.engine import Engine

    try:
        return Engine(model, progress=progress, **options)
    except ValueError:
        if is_needed:
            raise
        return None
