"""Whether an engine answers the questions of an evaluation, or batches do."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from vipllava_jax.asking.starting import start_engine, wants_engine

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.generation.model import Model

Opened: TypeAlias = 'AbstractContextManager[Engine]'
Engines: TypeAlias = Callable[[int], 'Opened | None']  # for a number of questions; None: batches answer them


def check_engine(is_asked: bool, joined: bool, choose: bool) -> None:
    """Raises ValueError if an engine is asked to do what it cannot do."""
    if is_asked and joined:
        raise ValueError('processes that have joined answer in batches: leave out the engine (--engine)')
    if is_asked and choose:
        raise ValueError(
            'an engine does not compute the likelihood of options: leave out the engine (--engine), or '
            'choose (--choose)'
        )


def open_engine(model: 'Model', engine: 'Engine | bool | None', count: int) -> 'Opened | None':
    """The engine that answers `count` questions; None if batches do."""
    if engine is not None and not isinstance(engine, bool):
        return nullcontext(engine)
    if not wants_engine(engine, count):
        return None
    from vipllava_jax.engine.engine import Engine

    return start_engine(partial(Engine, model), bool(engine))
