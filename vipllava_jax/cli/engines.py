"""Loads a model once, for an engine or for batches."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import click

from vipllava_jax.cli.models import load_model
from vipllava_jax.cli.waiting import count_bar

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Model, Source


class LoadedOnce:
    """A model that is loaded when it is needed first."""

    def __init__(self, weights: 'Source', processor: 'Processor') -> None:
        self.weights, self.processor = weights, processor
        self._model: Model | None = None

    def model(self, compile: Callable[[], Callable[[], None] | None] = lambda: None) -> 'Model':
        """The model; `compile` is called before it is loaded, and what it returns waits for the programs."""
        if self._model is None:
            wait = compile()
            self._model, _ = load_model(self.weights, self.processor)
            if wait:
                with contextlib.suppress(Exception):  # decoding raises the same error again
                    wait()
        return self._model

    def engine(self, choice: bool | None, count: int) -> 'Engine | None':
        """The engine that answers `count` questions; None if batches do.

        `choice` is the value of --engine: with True, an engine that does not fit the memory is a ValueError.
        """
        from vipllava_jax.asking.starting import compile_ahead, start_engine, wants_engine

        if not wants_engine(choice, count):
            return None
        start = compile_ahead(self.weights, self.processor)
        model = self.model()
        with count_bar('programs') as progress:
            engine = start_engine(partial(start, model, progress), bool(choice))
        if engine is None:
            click.echo('vipllava: the memory has no room for the engine: answering in batches', err=True)
        return engine
