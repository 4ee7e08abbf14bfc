"""Computes the minimum cost of each part of the model: the bytes moved and the operations performed.

Weights are read once; keys and values are written once and read by each step that attends to them.
Activations are not counted: an ideal program keeps them on the chip. A multiply-add is two operations.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vipllava_jax.config import Config


class Work(NamedTuple):
    """The minimum number of bytes moved and of operations performed."""

    bytes: float
    flop: float


@dataclass(frozen=True)
class Costs:
    """The work of a model, given the bytes per element of decoder weights, cache, and tower weights."""

    cfg: Config
    weight: float = 2
    cached: float = 2
    tower: float = 2

    def vision(self, images: int) -> Work:
        """The work of the vision tower, up to its deepest tap, and the projector for `images` images."""
        s, vision = self.cfg.vision.sizes, self.cfg.vision
        P, D = s['P'], s['D']
        depth = max(self.cfg.taps)
        layer, first = 4 * D * D + 2 * D * s['F'], s['C'] * D
        flop = depth * (2 * P * layer + 4 * P * P * D) + 2 * vision.patches * (first + self._bridge)
        return Work((depth * layer + P * D + first + self._bridge) * self.tower, images * flop)

    def training(
        self, lengths: Iterable[int], images: int, trains: Collection[str], adapters: int = 0
    ) -> float:
        """The operations of a training step over rows of these lengths: forward and backward.

        Each product is counted once for its result, once for the gradient of its input where that is needed,
        and once for the gradient of its weight if the weight trains. `trains` names the trainable parts of
        the model; `adapters` is the number of LoRA weights. Recomputation is not counted.
        """
        lengths = [*lengths]
        tokens, pairs = sum(lengths), sum(length * (length + 1) / 2 for length in lengths)
        products = (3 if 'llama' in trains else 2) * 2 * tokens * (self._layers + self._head)
        decoder = products + 3 * self._attention * pairs + 3 * 2 * tokens * adapters
        bridge = 2 * images * self.cfg.vision.patches * self._bridge
        tower = self.vision(images).flop - bridge
        if 'vision' in trains:
            return decoder + 3 * tower + (3 if 'projector' in trains else 2) * bridge
        return decoder + tower + (3 if 'projector' in trains else 1) * bridge

    def prefill(self, rows: int, tokens: int) -> Work:
        """The work of prefilling `rows` prompts of `tokens` tokens, with logits of the last token only."""
        products = 2 * (tokens * self._layers + self._head)
        return Work(
            (self._layers + self._head) * self.weight + rows * tokens * self.cached_token,
            rows * (products + self._attention * tokens * (tokens + 1) / 2),
        )

    def decode(self, rows: int, context: float, shared: int = 0) -> Work:
        """The work of decoding one token per row, after `context` tokens per row.

        The keys and values of the first `shared` tokens are the same for all rows, and read once.
        """
        weights = self._layers + self._head
        return Work(
            weights * self.weight + (shared + rows * (context - shared + 1)) * self.cached_token,
            rows * (2 * weights + self._attention * (context + 1)),
        )

    @property
    def cached_token(self) -> float:
        """The bytes of the keys and values of one token."""
        text = self.cfg.text
        return 2 * text.layers * text.kv_heads * text.head_size * self.cached

    @property
    def _layers(self) -> int:
        """The number of weights in the products of all decoder layers."""
        s = self.cfg.text.sizes
        attention = 2 * s['D'] * s['H'] * (s['N'] + s['K'])
        return self.cfg.text.layers * (attention + 3 * s['D'] * s['F'])

    @property
    def _bridge(self) -> int:
        """The number of weights in the projector."""
        return self.cfg.sizes['M'] * self.cfg.text.width + self.cfg.text.width**2

    @property
    def _head(self) -> int:
        return self.cfg.text.width * self.cfg.text.vocab

    @property
    def _attention(self) -> int:
        """The operations of attention per pair of a query token and a token that it attends to."""
        text = self.cfg.text
        return 4 * text.layers * text.heads * text.head_size
