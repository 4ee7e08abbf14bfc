"""Streams answers to stdout."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vipllava_jax.cli.waiting import spinner
from vipllava_jax.messages import safe_answer

if TYPE_CHECKING:
    from vipllava_jax.answering.replies import Reply

WAITING = 'looking at the picture; the first time, compiling …'


def ready() -> None:
    """Waits for nothing, because all is compiled."""


def stream_answers(replies: 'Sequence[Reply]', quiet: bool, wait: Callable[[], None] = ready) -> list[str]:
    """The complete answers to one question, streamed to stdout unless `quiet`; several have headers."""
    texts = []
    for number, reply in enumerate(replies, 1):
        header = f'--- answer {number} of {len(replies)} ---\n' if len(replies) > 1 else ''
        texts.append(stream_answer(reply, quiet, wait, header))
    return texts


def stream_answer(
    pieces: Iterable[str],
    quiet: bool,
    wait: Callable[[], None] = ready,
    header: str = '',
    what: str = WAITING,
) -> str:
    """The complete answer; unless `quiet`, it is streamed to stdout. Waits for the compilation first.

    A spinner says `what` happens until its first piece.
    """
    answer = ''

    def write(text: str) -> None:
        if not quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    with spinner(what) as stop:
        with contextlib.suppress(Exception):  # decoding raises the same error again
            wait()
        for piece in pieces:
            if piece and not answer:
                stop()
                write(header)
            answer += piece
            write(safe_answer(piece))
    write('\n' if answer else f'{header}\n')
    return answer
