"""A chat on the command line: what the next question brings, and the streaming of answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vipllava_jax import signals
from vipllava_jax.cli.chat_state import KeptChat
from vipllava_jax.cli.streaming import WAITING, ready, stream_answer
from vipllava_jax.messages import printable
from vipllava_jax.threads import background

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.answering.chat import Chat

SAMPLE = 'What is this?'  # a question of usual length
READING = 'reading; the first time, compiling …'
LOW = 256  # tokens; when fewer are left, each answer is followed by their number


class ChatSession:
    """A chat, and the pictures and marks of the next question."""

    def __init__(self, chat: 'Chat', kept: KeptChat, is_terminal: bool) -> None:
        """Only if a person is at a terminal, Ctrl-C stops an answer; otherwise it ends the command."""
        self.chat, self.kept, self.is_terminal = chat, kept, is_terminal
        self.wait: Callable[..., None] = ready  # waits until what the next answer runs is compiled
        self.images: list[Image] = []
        self.names: list[str] = []  # of the images
        self.marks: list[str] = []
        self.file: Path | None = None  # where the user has saved the chat, or loaded it from
        self.is_saved = True  # whether all of it is there
        self.typed = ''  # what the next line begins with

    def take_typed(self) -> str:
        """What the next line begins with, once."""
        typed, self.typed = self.typed, ''
        return typed

    def check(self) -> None:
        """Raises ValueError if the pictures for the next question leave no room for it; computes nothing."""
        self.chat.stream(SAMPLE, self.images, self.marks)

    def ask(self, text: str) -> None:
        """Asks a question with the pictures and marks that were given for it."""
        before = len(self.chat.questions)
        self.stream(lambda: self.chat.stream(text, self.images, self.marks), bool(self.images))
        if len(self.chat.questions) > before:  # not if it was stopped before the first text
            self.bring()

    def compile(self) -> None:
        """Starts to compile what the next answer runs, after what is being compiled."""
        chat, before = self.chat, self.wait

        def run() -> None:
            before()
            with suppress(Exception):  # decoding raises the same error again
                chat.compile()

        self.wait = background(run)

    def stream(self, start: Callable[[], Iterator[str]], is_pictured: bool = False) -> None:
        """Streams an answer to stdout until it ends or Ctrl-C stops it; raises the errors of the chat."""
        before = self.chat.turns
        with signals.recording_interrupts() if self.is_terminal else nullcontext(never) as stopped:
            pieces = until(stopped, started(start))
            self.compile()
            wait = partial(wait_unless, stopped, self.wait)
            answer = stream_answer(pieces, False, wait, what=WAITING if is_pictured else READING)
        if self.chat.turns != before:
            self.keep()
        if stopped():
            what = 'stays as far as it came' if answer else 'has not begun: the chat is as before'
            click.echo(f'stopped: the answer {what}', err=True)
        elif not answer:
            click.echo('the answer is empty: /retry, or /undo and ask in another way', err=True)
        elif self.chat.finish_reason == 'length':
            end = 'the maximum number of tokens: see /set max_new_tokens'
            reached = end if self.chat.tokens_left else 'the end of the context'
            click.echo(f'the answer has reached {reached}', err=True)
        self.warn_of_end()

    def warn_of_end(self) -> None:
        """Says how many tokens are left if they are few."""
        if (left := self.chat.tokens_left) < LOW:
            advice = '/undo takes back the last question, /new begins another chat'
            click.echo(f'{left} tokens left: {advice}', err=True)

    def bring(self, images: 'Sequence[Image]' = (), marks: Sequence[str] = ()) -> None:
        """Replaces the pictures and marks of the next question."""
        self.images, self.names, self.marks = [*images], [''] * len(images), [*marks]

    def keep(self) -> None:
        """Keeps the chat, which has changed."""
        self.is_saved = False
        self.kept.keep(self.chat)

    def add_image(self, path: str) -> None:
        """Opens a picture for the next question."""
        from vipllava_jax.inputs.images import open_image

        self.images.append(open_image(path))
        self.names.append(path)

    def show_images(self, first: int = 0) -> None:
        """Says the number, name and size of each picture for the next question, from one on."""
        asked = len(self.asked_images())
        for index in range(first, len(self.images)):
            name, (width, height) = self.names[index], self.images[index].size
            about = f'{printable(name)}, {width}x{height}' if name else f'{width}x{height}'
            click.echo(f'picture {asked + index + 1}: {about}', err=True)

    def asked_images(self) -> 'list[Image]':
        """The pictures of the questions that have been asked, without marks."""
        return [image for question in self.chat.questions for image in question.images]

    def add_mark(self, spec: str) -> None:
        """Checks a mark for the next question against its picture; raises ValueError if it is invalid."""
        from vipllava_jax.answering.chat_turns import read_question

        marks = [*self.marks, spec]
        # With the numbers of their pictures: another picture may follow.
        self.marks = [*read_question('?', self.images, marks, self.chat.questions).marks]

    def show_marks(self, first: int = 0) -> None:
        """Says where the marks for the next question are, from one on, and what stands for each of them."""
        from vipllava_jax.answering.chat_turns import read_question
        from vipllava_jax.inputs.mark_syntax import parse_mark

        marks = read_question('?', self.images, self.marks, self.chat.questions).marks
        for index in range(first, len(marks)):
            image, mark = parse_mark(marks[index])
            name = f'{{mark{index + 1 if index else ""}}}'
            where = f'mark {index + 1}, on picture {image + 1}'
            click.echo(f'{where}: {name} is "{printable(mark.phrase)}"', err=True)

    def begin(self, chat: 'Chat', file: Path | None) -> None:
        """Goes on with another chat, which is that of a file or empty; the one before is kept."""
        self.leave_chat()
        self.kept.begin_another()
        self.chat, self.file, self.is_saved = chat, file, True
        self.bring()

    def leave_chat(self) -> None:
        """Says where the chat is kept, if the user has not saved it."""
        path = self.kept.finish()
        if path and self.chat.questions and not self.is_saved:
            click.echo(f'the chat is in {printable(str(path))}; /load or --load continues it', err=True)


def never() -> bool:
    """Whether a chat without a terminal is stopped."""
    return False


def started(start: Callable[[], Iterator[str]]) -> Iterator[str]:
    """The pieces of an answer; if the context is full, a ValueError says what to type."""
    from vipllava_jax.answering.chat_replies import ContextFull

    try:
        return start()
    except ContextFull as error:
        reason = str(error).rpartition(': ')[0]
        advice = 'ask something shorter, take back questions with /undo, or begin another chat with /new'
        raise ValueError(f'{reason}: {advice}') from None


def until(stopped: Callable[[], bool], pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of an answer until it is stopped."""
    while not stopped() and (piece := next(pieces, None)) is not None:
        yield piece


def wait_unless(stopped: Callable[[], bool], wait: Callable[..., None]) -> None:
    """Waits until the answer can begin, or is stopped; what is being compiled then serves later answers."""
    while not stopped():
        with suppress(TimeoutError):
            return wait(0.1)
