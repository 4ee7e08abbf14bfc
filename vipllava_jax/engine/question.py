"""Questions to the engine, and everything that can be checked and encoded before a picture is opened."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vipllava_jax.answering.prompts import Marks, image_list, insert_phrases, place_marks
from vipllava_jax.answering.questions import check_question
from vipllava_jax.answering.replies import with_template_stops
from vipllava_jax.engine.answer_format import AnswerFormat
from vipllava_jax.generation.logits.processing import check_forced
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.plan import check_ids, max_new_tokens_for, with_seed
from vipllava_jax.generation.setting_checks import NUMBERS
from vipllava_jax.generation.settings import GenerationSettings, check_lengths
from vipllava_jax.generation.stopping import eos_ids, stop_ids
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.image_arrays import check_array, is_array
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.pixels import Fit, check_fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, Turn, check_template
from vipllava_jax.messages import brief
from vipllava_jax.model.input_checks import check_inputs

MAX_PRIORITY = 1 << 31
MAX_TOKEN_CHARACTERS = 256  # more than a token of any vocabulary stands for


class QuestionError(ValueError):
    """A question that can never be answered; the message says why, and what to do.

    `part` is what is at fault: the name of a field of the Question or of its settings, '' if that is unknown.
    """

    def __init__(self, message: str, part: str = '') -> None:
        super().__init__(message)
        self.part = part


class QueueFull(RuntimeError):
    """The queue holds as many questions as it may: ask again later."""


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt about pictures, or without any, and how it is answered; nothing is checked yet.

    `prompt` is a text, in which {mark} or {mark1}, {mark2}, … stand for the phrases of the marks, or a
    conversation of Turns, which is used as it is. Marks, template and fit are those of `answer`; settings
    default to the model's. `id` is for the caller. With an `answer_format`, the text of the answer has this
    format, and the stop strings of the template do not end it. Questions of a lower `priority` are answered
    earlier, equal ones in the order of their arrival. With `keep_images`, the reply has the pictures as the
    model sees them.
    """

    prompt: str | Sequence[Turn]
    images: Sequence[ImageSource] = ()  # paths, the bytes of files, PIL images or arrays of uint8
    marks: Marks = ()
    settings: GenerationSettings | None = None
    template: str = DEFAULT_TEMPLATE
    fit: Fit | None = None
    id: str | None = None
    answer_format: AnswerFormat | None = None
    priority: int = 0
    keep_images: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'images', tuple(image_list(self.images)))


class EncodedQuestion(NamedTuple):
    """A question that can be answered as soon as its pictures are there."""

    question: Question
    ids: np.ndarray  # T int32, the whole prompt with a placeholder for each image feature
    settings: GenerationSettings  # with the template's stop strings, if these apply, and a seed
    limit: int  # the maximum number of new tokens
    eos: tuple[int, ...]  # the ids that end an answer and that its text leaves out
    stop_ids: tuple[int, ...]  # the stop strings that are one token


def encode(question: Question, model: Model) -> EncodedQuestion:
    """A question -> its ids, settings and limits; no picture is opened.

    Raises QuestionError for what is invalid whatever the pictures show, and for settings that need a batch of
    their own; TypeError for what is not a Question.
    """
    if not isinstance(question, Question):
        raise TypeError(f'expected a Question, found {brief(question)}: create one with Question(prompt, …)')
    with _refused():
        _check_fields(question)
        settings = model.settings if question.settings is None else question.settings
        check_settings(settings)
        processor = model.processor
        check_template(question.template, processor.chat_template)
    with _refused('prompt'):
        turns = _turns(question)
        _check_size(turns, model.cfg.text.context)
        ids = processor.encode(turns, len(question.images), question.template)
    with _refused():
        if question.answer_format is None:
            settings = with_template_stops(settings, processor, question.template)
        settings = with_seed(settings, None)
        check_ids(settings, model.cfg)
        limit = _limit(ids, len(question.images), settings, model)
        ends = eos_ids(settings, model.cfg), stop_ids(settings, processor)
        return EncodedQuestion(question, np.array(ids, np.int32), settings, limit, *ends)


@contextlib.contextmanager
def _refused(part: str = '') -> Iterator[None]:
    """Raises QuestionError in place of the errors of checks, without the row that a batch would have.

    `part` is at fault unless the message begins with the name of a setting.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        message = str(error).removeprefix('row 0: ')
        raise QuestionError(re.sub('^row 0 ', 'the prompt ', message), setting_in(message) or part) from None


def setting_in(message: str) -> str:
    """The setting with whose name the message of an error begins; '' if there is none."""
    name = message.partition(' ')[0]
    return name if name in GenerationSettings.__dataclass_fields__ else ''


def _check_fields(question: Question) -> None:
    check_fit(question.fit)
    if question.id is not None and not isinstance(question.id, str):
        raise TypeError(f'the id is {brief(question.id)}: expected a string')
    if question.answer_format is not None and not isinstance(question.answer_format, AnswerFormat):
        raise TypeError(
            f'the answer format is {brief(question.answer_format)}: expected an AnswerFormat, such as '
            'AnswerFormat("json_object")'
        )
    if not isinstance(question.priority, int) or abs(question.priority) > MAX_PRIORITY:
        raise TypeError(
            f'the priority is {brief(question.priority)}: expected a whole number from -{MAX_PRIORITY} to '
            f'{MAX_PRIORITY}'
        )
    for number, source in enumerate(question.images, 1):
        if is_array(source):
            check_array(source, f'image {number}')
        elif not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
            raise TypeError(
                f'image {number} is of type {type(source).__name__}: expected a path, bytes, a PIL picture '
                'or an array'
            )


def check_settings(settings: GenerationSettings) -> None:
    """Raises ValueError for settings that the rows of a running batch cannot have."""
    if not isinstance(settings, GenerationSettings):
        raise TypeError(f'settings is {brief(settings)}, but must be a GenerationSettings')
    if settings.num_beams > 1:
        raise ValueError(
            f'num_beams is {settings.num_beams}, but the engine does not search beams: set it to 1, or use '
            'answer or generate'
        )
    if settings.prompt_lookup_num_tokens:
        raise ValueError(
            f'prompt_lookup_num_tokens is {settings.prompt_lookup_num_tokens}, but the engine does not guess '
            'tokens: set it to 0, or use answer or generate'
        )
    if settings.processors:
        raise ValueError(
            'there are processors, which would be compiled while other questions wait: leave them out, or '
            'use answer or generate'
        )
    numbers: dict[str, Any] = {name: getattr(settings, name) for name in NUMBERS}
    decay = settings.exponential_decay_length_penalty or (0, 1.0)
    for name, value in {
        **numbers,
        'exponential_decay_length_penalty': decay[0],
        'its factor': decay[1],
    }.items():
        if isinstance(value, tuple):
            raise ValueError(f'{name} is {brief(value)}, but a question is a single row: give one number')


def _turns(question: Question) -> list[Turn]:
    """The conversation of a question, with the phrases of its marks if it is a text."""
    placed = place_marks(question.marks, len(question.images))
    prompt = question.prompt
    if isinstance(prompt, str):
        check_question(prompt)
        return [Turn('user', insert_phrases(prompt, [mark for _, mark in placed]))]
    if not isinstance(prompt, list | tuple) or isinstance(prompt, Turn):
        raise TypeError(f'the prompt is {brief(prompt)}: expected a text or a list of Turns')
    for number, turn in enumerate(prompt, 1):
        if not isinstance(turn, Turn) or not all(isinstance(part, str) for part in turn):
            raise TypeError(f'turn {number} is {brief(turn)}: expected a Turn, such as Turn("user", "What?")')
    if prompt:
        check_question(''.join(turn.text for turn in prompt))
    return [*prompt]


def _check_size(turns: Sequence[Turn], context: int) -> None:
    """Raises ValueError for a prompt that is too long for the context, which may take seconds to encode."""
    size = sum(len(turn.text) for turn in turns)
    if size > MAX_TOKEN_CHARACTERS * context:
        raise ValueError(
            f'the prompt has {size} characters, which the context of {context} tokens cannot hold: shorten it'
        )


def _limit(ids: Sequence[int], image_count: int, settings: GenerationSettings, model: Model) -> int:
    """The maximum number of new tokens; ValueError if the context or the settings exclude an answer."""
    cfg, side = model.cfg, model.cfg.vision.image_size
    tokens, lengths = np.array([ids], np.int32), np.array([len(ids)], np.int32)
    images = np.broadcast_to(np.float32(0), (1, image_count, side, side, 3))
    batch = Batch(tokens, lengths, images, np.array([image_count], np.int32))
    check_inputs(batch.tokens, batch.images, batch.image_counts, cfg, lengths)
    limits = max_new_tokens_for(batch, cfg, settings.max_new_tokens)
    check_lengths(settings.per_row('min_new_tokens', 1, none=0), limits)
    check_forced(settings, limits)
    return int(limits[0])
