"""What is known of a request, for its log and for metrics."""

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from vipllava_jax.engine.reply import Reply
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.exchange import Exchange

PLAIN_ID = re.compile('[A-Za-z0-9_.:-]{1,64}')


@dataclass
class Record:
    """One request and how it was answered; `scope['record']` while it is."""

    id: str
    begin: float = field(default_factory=time.perf_counter)
    endpoint: str | None = None  # the path, if it is one that asks the engine
    exchange: Exchange | None = None
    ignored: tuple[str, ...] = ()  # fields that have no effect, in ASCII
    replies: Sequence[Reply] = ()
    status: int = 0  # 0: no response was sent
    error: ApiError | None = None
    why: str = 'finished'

    def failed(self, error: ApiError) -> None:
        """The request has ended with an error."""
        self.error = error
        self.why = 'drained' if self.exchange and error.code == 'shutting_down' else 'error'

    def prompt(self) -> str | None:
        """The texts that the engine was asked; None if it was not."""
        if self.exchange is None:
            return None
        prompts = [question.prompt for question in self.exchange.questions]
        texts = [[p] if isinstance(p, str) else [turn.text for turn in p] for p in prompts]
        return '\n'.join(text for each in texts for text in each)


def request_id(given: str | None) -> str:
    """The id that the client has given if it is short and plain, otherwise a new one."""
    return given if given and PLAIN_ID.fullmatch(given) else secrets.token_hex(16)
