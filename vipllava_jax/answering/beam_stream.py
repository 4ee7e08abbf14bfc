"""The answers of beam search in the form of a stream, so that replies are read from them in the same way."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vipllava_jax.generation.decoding import generate
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.plan import make_plan
from vipllava_jax.generation.prefix import Prefix
from vipllava_jax.generation.result import Generation
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.batch import Batch


class BeamStream(Iterator[np.ndarray]):
    """Yields the answers at once, (B·n)×T, because the best beam is known only at the end.

    The search runs when they are requested; the arguments are checked before, with the errors of `generate`.
    """

    def __init__(
        self, model: Model, batch: Batch, settings: GenerationSettings, prefix: Prefix | None = None
    ) -> None:
        self.model, self.batch, self.settings, self.prefix = model, batch, settings, prefix
        self.ends = make_plan(model.params, batch, model.cfg, settings, model.processor, prefix).ends
        self.found: Generation | None = None

    def __next__(self) -> np.ndarray:
        if self.found is not None:
            raise StopIteration
        self.found = self.generation()
        self.ends.lengths, self.ends.reasons = self.found.lengths, [*self.found.finish_reasons]
        return self.found.tokens

    def generation(self) -> Generation:
        """The complete answers."""
        if self.found is not None:
            return self.found
        params, cfg, processor, _ = self.model
        given: dict[str, Any] = {'processor': processor, 'prefix': self.prefix}
        return generate(params, self.batch, cfg=cfg, settings=self.settings, **given)
