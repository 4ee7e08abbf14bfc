"""Whether an engine is worth the time that it takes to start, and starting it."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vipllava_jax.threads import background

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.generation.model import Model
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Source

Progress = Callable[[int, int], None]
SIZES = ('rows', 'slots', 'long_rows', 'prefix_bytes')  # arguments of the engine

MIN_QUESTIONS = 1000  # from which an engine, which compiles for a minute, saves more than that minute


def wants_engine(choice: bool | None, count: int) -> bool:
    """Whether an engine answers `count` questions; a `choice` of None depends on which is earlier done."""
    if choice is not None:
        return choice
    import jax

    return count >= MIN_QUESTIONS and jax.local_devices()[0].platform != 'cpu'


def compile_ahead(
    weights: 'Source', processor: 'Processor', **options: Any
) -> 'Callable[[Model, Progress], Engine]':
    """Compiles the programs of an engine with these options in the background, before the weights are loaded.

    Returns a function that starts the engine for the loaded model. It first waits for the programs, and calls
    `progress` meanwhile with the numbers of compiled ones and of all.
    """
    from vipllava_jax.engine.compiling import compile_all
    from vipllava_jax.engine.device import Device
    from vipllava_jax.engine.memory import shapes_for
    from vipllava_jax.generation.model import Model

    shown: list[Progress] = []

    def progress(done: int, total: int) -> None:
        for show in shown:
            show(done, total)

    def compile() -> None:
        model = Model(weights.shapes(), weights.cfg, processor)
        shapes = shapes_for(model, **{name: options[name] for name in SIZES if name in options})
        compile_all(Device(model.params, model.cfg, shapes, processor.image_settings), progress)

    wait = background(compile)

    def start(model: 'Model', show: Progress) -> 'Engine':
        from vipllava_jax.engine.engine import Engine

        shown.append(show)
        with contextlib.suppress(ValueError):  # which the engine raises again
            wait()
        return Engine(model, **options)

    return start


def start_engine(start: 'Callable[[], Engine]', is_needed: bool) -> 'Engine | None':
    """The engine that `start` starts.

    None if the memory has no room for one, unless it `is_needed`, which makes it a ValueError.
    """
    try:
        return start()
    except ValueError:
        if is_needed:
            raise
        return None
