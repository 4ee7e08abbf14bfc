"""Logs of requests."""

import logging
import sys
from collections.abc import Sequence
from typing import Literal, TextIO

from vipllava_jax.engine.reply import Reply
from vipllava_jax.protocol.errors import ApiError


class RequestLog:
    """Writes a line for each request."""

    def __init__(self, stream: TextIO, format: Literal['text', 'json'], prompts: bool) -> None:
        self._stream = stream

    def request(
        self,
        id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        replies: Sequence[Reply],
        error: ApiError | None,
        prompt: str | None,
        client: str,
    ) -> None:
        """Writes the line of a request that has ended."""


def configure(format: Literal['text', 'json']) -> None:
    """Makes uvicorn log in the same format."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
