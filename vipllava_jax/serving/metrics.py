"""Counts and times of requests, in the format of Prometheus."""

from collections.abc import Callable, Sequence

from vipllava_jax.engine.reply import Reply
from vipllava_jax.engine.stats import Stats
from vipllava_jax.protocol.exchange import Exchange


class Metrics:
    """The metrics of a server."""

    content_type = 'text/plain; version=0.0.4; charset=utf-8'

    def __init__(self, engine_stats: Callable[[], Stats | None]) -> None:
        self._engine_stats = engine_stats

    def arrived(self, path: str) -> None:
        """A request has arrived."""

    def rejected(self, reason: str) -> None:
        """A request was refused before its body was read."""

    def ended(
        self, path: str, exchange: Exchange | None, replies: Sequence[Reply], status: int, why: str
    ) -> None:
        """A request has ended."""

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return b''
