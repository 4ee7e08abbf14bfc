"""What a request and its response have in common, whatever the endpoint."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vipllava_jax.engine.pieces import Piece
from vipllava_jax.engine.question import Question
from vipllava_jax.engine.reply import Reply
from vipllava_jax.protocol.responses import now


@dataclass
class Exchange(ABC):
    """A request: the questions that the engine is asked, and how their answers are written.

    Either `body` is called when all replies are complete, or, if `stream` is set, the other methods while the
    pieces arrive. All return JSON as dicts.
    """

    id: str  # of the response
    model: str  # by its name in requests
    questions: tuple[Question, ...]
    stream: bool
    params: Mapping[str, str]  # the fields of the request by the parts of questions that they become
    include_usage: bool = False  # whether a stream ends with the numbers of tokens
    created: int = field(default_factory=now)

    @abstractmethod
    def body(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The whole response; raises the error of a reply that has failed."""

    def opening(self) -> list[dict[str, Any]]:
        """The events before the first piece."""
        return []

    @abstractmethod
    def events(self, index: int, reply: Reply, piece: Piece) -> list[dict[str, Any]]:
        """The events of a piece of the reply to question `index`; none if it shows nothing new."""

    @abstractmethod
    def closing(self, replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """The events after the last piece of all replies, such as that of the usage."""

    def head(self, object: str) -> dict[str, Any]:
        """The fields with which the response and each event begin; `object` says which it is."""
        return {'id': self.id, 'object': object, 'created': self.created, 'model': self.model}
