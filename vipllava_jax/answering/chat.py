"""A conversation about images, of which each turn computes only what is new."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Self

from PIL import Image

from vipllava_jax.answering import chat_files
from vipllava_jax.answering.chat_replies import ChatReplies, with_retries
from vipllava_jax.answering.chat_turns import (
    Exchange,
    Images,
    Question,
    conversation,
    draw_marks,
    find_turn,
    images_of,
    marks_of_images,
    questions_of,
    read_question,
    with_marks,
)
from vipllava_jax.answering.prompts import Marks
from vipllava_jax.answering.questions import check_model, for_one_answer
from vipllava_jax.answering.replies import Reply
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.pixels import Fit, check_fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, IMAGE_TOKEN, Turn, check_template
from vipllava_jax.messages import brief

ONE_ANSWER = 'a chat goes on from one answer: leave it out'


class Chat:
    """A conversation with a model about images and marks on them.

    Each answer equals one that is computed afresh from all turns as text, `model.processor(chat.turns,
    chat.images, template=chat.template, fit=chat.fit)`, but only what follows the longest known beginning is
    computed. `settings` default to those of the model; the attribute may be changed at any time. `template`
    and `fit` are those of `answer`, and `system` replaces the template's system text.

    Raises ValueError or TypeError for a model without a processor, or another invalid argument.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        template: str = DEFAULT_TEMPLATE,
        settings: GenerationSettings | None = None,
        fit: Fit | None = None,
    ) -> None:
        check_model(model)
        check_template(template, model.processor.chat_template)
        check_fit(fit)
        if system is not None and not isinstance(system, str):
            raise TypeError(f'system is {brief(system)}: expected a string')
        if IMAGE_TOKEN in (system or ''):
            raise ValueError(f'system has {IMAGE_TOKEN}: images belong to questions')
        self.model, self.system, self.template, self.fit = model, system, template, fit
        self.settings = for_one_answer(settings, model.settings, ONE_ANSWER)
        self._replies = ChatReplies(model, template, fit)
        self._exchanges: tuple[Exchange, ...] = ()
        self._running: Generator[str] | None = None  # the newest answer
        self._encode(())  # raises the errors of the template

    @property
    def turns(self) -> list[Turn]:
        """The conversation as the processor takes it, with the phrases of marks in its texts.

        Where later questions have images, the texts of the questions have an `<image>` for each image.
        """
        return conversation(self.system, self._exchanges, None, self.template)

    @property
    def questions(self) -> list[Question]:
        """The questions as they were asked: `text`, `images` without marks, and `marks` as 'N/…'."""
        return questions_of(self._exchanges)

    @property
    def images(self) -> list[Image.Image]:
        """All images of the conversation in order, with the marks drawn on them."""
        return [*map(draw_marks, images_of(self.questions), marks_of_images(self.questions))]

    @property
    def tokens_left(self) -> int:
        """The number of tokens that the context leaves for the next question and its answer."""
        return max(self.model.cfg.text.context - len(self._encode(self._exchanges)), 0)

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the newest prompt were known, and not computed again."""
        return self._replies.cached_tokens

    @property
    def finish_reason(self) -> str:
        """Why the last answer ended: 'stop', 'length' or 'time'; '' if it was interrupted or edited."""
        return self._exchanges[-1].finish_reason if self._exchanges else ''

    def ask(
        self, text: str, images: Images = (), marks: Marks = (), *, settings: GenerationSettings | None = None
    ) -> str:
        """The answer to the next question; arguments and errors are those of `stream`."""
        return ''.join(self.stream(text, images, marks, settings=settings))

    def stream(
        self, text: str, images: Images = (), marks: Marks = (), *, settings: GenerationSettings | None = None
    ) -> Iterator[str]:
        """Yields the answer to the next question in pieces; the question may bring new images.

        Marks are those of `answer`. The number in 'N/…' counts all images of the conversation, also earlier
        ones; a mark without a number is on the first image of the newest question that has any. {mark} and
        {mark2} in the text are the marks of this question. `settings` apply to this answer alone.

        An answer that is interrupted, or no longer read when the chat goes on, stays as far as it came; if
        that is before its first text, the chat is unchanged. Raises ContextFull, ValueError, TypeError or
        FileNotFoundError before anything runs.
        """
        question = read_question(text, images, marks, self.questions)
        return self._start(self._exchanges, Exchange(question), settings)

    def compile(self) -> None:
        """Compiles the programs of the answer that `stream` has returned, which is not read yet.

        It may run on another thread, and the params of the model may be shapes.
        """
        self._replies.compile()

    def edit(
        self, turn: int, text: str, *, marks: Marks | None = None, settings: GenerationSettings | None = None
    ) -> str:
        """Replaces the text of a turn, and drops all that follow it -> the answer there.

        `turn` is an index in `turns`. A question keeps its images and, unless `marks` are given, its marks,
        and is answered again. An answer is replaced by `text`, from which the conversation goes on. Raises
        IndexError for the index of another turn, and the errors of `stream`.
        """
        return ''.join(self.stream_edit(turn, text, marks=marks, settings=settings))

    def stream_edit(
        self, turn: int, text: str, *, marks: Marks | None = None, settings: GenerationSettings | None = None
    ) -> Iterator[str]:
        """The same as `edit`, in pieces."""
        at, of_answer = find_turn(self.turns, turn)
        if not isinstance(text, str):
            raise TypeError(f'the text is {brief(text)}: expected a string')
        earlier, question = self._exchanges[:at], self._exchanges[at].question
        if of_answer:
            if marks is not None:
                raise ValueError(f'turn {turn} is an answer, which has no marks: edit the question')
            self._encode(exchanges := (*earlier, Exchange(question, text)))  # raises an error if not Unicode
            self._end_answer()
            self._exchanges = exchanges
            return iter([text])
        question = question._replace(text=text)
        question = with_marks(question, question.marks if marks is None else marks, questions_of(earlier))
        return self._start(earlier, Exchange(question), settings)

    def undo(self) -> Question:
        """Removes the last question and its answer -> the question, so that `ask(*chat.undo())` repeats it.

        Raises ValueError if there is none.
        """
        *earlier, (question, *_) = self._asked()
        self._end_answer()
        self._exchanges = tuple(earlier)
        return question

    def retry(self, *, settings: GenerationSettings | None = None) -> str:
        """Answers the last question again, with the next seed if the settings have one.

        Without a temperature, the answer is the same. Raises ValueError if there is no question.
        """
        return ''.join(self.stream_retry(settings=settings))

    def stream_retry(self, *, settings: GenerationSettings | None = None) -> Iterator[str]:
        """The same as `retry`, in pieces."""
        *earlier, last = self._asked()
        return self._start(tuple(earlier), Exchange(last.question, retries=last.retries + 1), settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation with its images to a JSON file, which replaces a saved chat atomically.

        Raises ValueError if another file is there, or if the chat is too large to be loaded.
        """
        saved = chat_files.SavedChat(self.system, self.template, self.fit, self._exchanges)
        chat_files.write_chat(Path(path), saved, self.model.processor.folder)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Model, *, settings: GenerationSettings | None = None
    ) -> Self:
        """The chat in a file that `save` wrote; it is computed again when the next question is asked.

        Raises ValueError, in one line with the path, for a file that holds something else.
        """
        system, template, fit, exchanges = chat_files.read_chat(Path(path))
        chat = cls(model, system=system, template=template, settings=settings, fit=fit)
        chat._exchanges = exchanges
        return chat

    def __repr__(self) -> str:
        counts = f'questions={len(self.questions)}, images={len(images_of(self.questions))}'
        return f'Chat({counts}, tokens_left={self.tokens_left}, template={self.template!r})'

    def _start(
        self, earlier: tuple[Exchange, ...], asked: Exchange, settings: GenerationSettings | None
    ) -> Iterator[str]:
        """Prepares the answer to a question after earlier ones; both join the chat as the answer is read."""
        settings = for_one_answer(self.settings if settings is None else settings, self.settings, ONE_ANSWER)
        turns = conversation(self.system, earlier, asked.question, self.template)
        questions = questions_of([*earlier, asked])
        images, marks = images_of(questions), marks_of_images(questions)
        reply = self._replies.reply(turns, images, marks, with_retries(settings, asked.retries))
        self._end_answer()
        self._running = self._read(reply, earlier, asked)
        return self._running

    def _read(self, reply: Reply, earlier: tuple[Exchange, ...], asked: Exchange) -> Generator[str]:
        """Yields the pieces of a reply; what has been read of it is the last answer of the chat."""
        answer = ''
        for piece in reply:
            piece = piece if answer else piece.lstrip()
            answer += piece
            self._replies.keep(reply)
            if piece:
                self._exchanges = (*earlier, asked._replace(answer=answer))
                yield piece
        self._exchanges = (*earlier, asked._replace(answer=answer, finish_reason=reply.finish_reason))
        self._replies.settle()

    def _encode(self, exchanges: tuple[Exchange, ...]) -> list[int]:
        """The ids of the conversation with another question, which is empty."""
        turns = conversation(self.system, exchanges, Question(''), self.template)
        return self._replies.encode(turns, len(images_of(questions_of(exchanges))))

    def _end_answer(self) -> None:
        """Ends the answer that is being streamed, if there is one, because the chat goes on."""
        if self._running is not None:
            self._running.close()

    def _asked(self) -> tuple[Exchange, ...]:
        """The questions and answers; ValueError if there are none."""
        if not self._exchanges:
            raise ValueError('the chat has no question yet: ask one first')
        return self._exchanges
