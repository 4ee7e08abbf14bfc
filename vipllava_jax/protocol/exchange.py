"""What a request and its response have in common, whatever the endpoint."""

from collections.abc import Sequence
from typing import Any, Protocol

from vipllava_jax.engine.pieces import Piece
from vipllava_jax.engine.question import Question
from vipllava_jax.engine.reply import Reply


class Exchange(Protocol):
    """A request: the questions that the engine is asked, and how their answers are written.

    Either `body` is called when all replies are complete, or, if `stream` is set, the other methods while the
    pieces arrive. All return JSON as dicts.
    """

    questions: tuple[Question, ...]
    stream: bool
    ignored: tuple[str, ...]  # fields of the request that have no effect

    def body(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The whole response; raises the error of a reply that has failed."""
        ...

    def opening(self) -> list[dict[str, Any]]:
        """The events before the first piece."""
        ...

    def events(self, index: int, reply: Reply, piece: Piece) -> list[dict[str, Any]]:
        """The events of a piece of the reply to question `index`; none if it shows nothing new."""
        ...

    def closing(self, replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """The events after the last piece of all replies, such as that of the usage."""
        ...
