"""What a piece of work costs at least: the bytes that must move and the operations that must be done.

Weights are read once; keys and values are written once and read by each step that sees them. Activations
are left out: an ideal program keeps them on the chip. A multiplication with its addition is two operations.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vipllava_jax.config import Config


class Work(NamedTuple):
    """Bytes moved and operations done, the fewest possible."""

    bytes: float
    flop: float


@dataclass(frozen=True)
class Costs:
    """The work of one model, by the bytes of a number: of the decoder's weights, its cache, the tower's."""

    cfg: Config
    weight: float = 2
    cached: float = 2
    tower: float = 2

    def vision(self, images: int) -> Work:
        """Images through the tower, as deep as the deepest tap, and the projector."""
        s, vision = self.cfg.vision.sizes, self.cfg.vision
        P, D = s['P'], s['D']
        depth = max(self.cfg.taps)
        layer, first = 4 * D * D + 2 * D * s['F'], s['C'] * D
        flop = depth * (2 * P * layer + 4 * P * P * D) + 2 * vision.patches * (first + self._bridge)
        return Work((depth * layer + P * D + first + self._bridge) * self.tower, images * flop)

    def training(
        self, lengths: Iterable[int], images: int, trains: Collection[str], adapters: int = 0
    ) -> float:
        """The operations of a step over rows of so many tokens: forward, and backward as far as it must go.

        A product costs once for its result, once for the gradient of what it read, and once for that of its
        weight if it trains. `adapters` counts the weights of LoRA's pairs. Nothing is computed twice.
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
        """Prompts of so many tokens through the decoder, logits of the last one only."""
        products = 2 * (tokens * self._layers + self._head)
        return Work(
            (self._layers + self._head) * self.weight + rows * tokens * self.cached_token,
            rows * (products + self._attention * tokens * (tokens + 1) / 2),
        )

    def decode(self, rows: int, context: float) -> Work:
        """One more token for each row, with so many in the cache."""
        weights = self._layers + self._head
        return Work(
            weights * self.weight + rows * (context + 1) * self.cached_token,
            rows * (2 * weights + self._attention * (context + 1)),
        )

    @property
    def cached_token(self) -> float:
        """The bytes of one token's keys and values."""
        text = self.cfg.text
        return 2 * text.layers * text.kv_heads * text.head_size * self.cached

    @property
    def _layers(self) -> int:
        """The weights that each token of a prompt is multiplied with."""
        s = self.cfg.text.sizes
        attention = 2 * s['D'] * s['H'] * (s['N'] + s['K'])
        return self.cfg.text.layers * (attention + 3 * s['D'] * s['F'])

    @property
    def _bridge(self) -> int:
        """The weights of the projector."""
        return self.cfg.sizes['M'] * self.cfg.text.width + self.cfg.text.width**2

    @property
    def _head(self) -> int:
        return self.cfg.text.width * self.cfg.text.vocab

    @property
    def _attention(self) -> int:
        """The operations between one query token and one that it sees."""
        text = self.cfg.text
        return 4 * text.layers * text.heads * text.head_size
