"""Tokenizes conversations into input ids and target ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, IMAGE_TOKEN, TEMPLATES, Turn, render
from vipllava_jax.messages import brief

IGNORE = -100  # the target of a token without a loss
ROLES = {'system': 'system', 'human': 'user', 'gpt': 'assistant'}
# The text after an answer in each template, also a target; without one, a model would not learn to stop.
ANSWER_ENDINGS = {
    name: end for name, template in TEMPLATES.items() if (end := template.assistant.partition('{}')[2])
}


class Example(NamedTuple):
    """Tokens T int32, and targets T int32: the next id if it is part of an answer, else IGNORE."""

    tokens: np.ndarray
    targets: np.ndarray


def parse_conversation(conversation: Any, images: int) -> list[Turn]:
    """The `conversations` of a row -> turns without `<image>`; ValueError if they are not valid.

    A row's images come first in the human's first turn, wherever the text has `<image>`.
    """
    if not isinstance(conversation, list) or not conversation:
        raise ValueError('it has no conversation: expected a list of {"from", "value"} in "conversations"')
    turns = [_turn(number, turn, images) for number, turn in enumerate(conversation)]
    dialogue = turns[1:] if turns[0].role == 'system' else turns
    expected = ['user', 'assistant'] * max(-(-len(dialogue) // 2), 1)
    if [turn.role for turn in dialogue] != expected:
        found = ', '.join(turn['from'] for turn in conversation)
        raise ValueError(f'human and gpt must take turns, from human to gpt; found {found}')
    return turns


def _turn(number: int, turn: Any, images: int) -> Turn:
    sender, text = (turn.get('from'), turn.get('value')) if isinstance(turn, dict) else (None, None)
    if not isinstance(sender, str) or sender not in ROLES or not isinstance(text, str):
        raise ValueError(
            f'turn {number} is {brief(turn)}: expected {{"from": "human" or "gpt", "value": a string}}'
        )
    role = ROLES[sender]
    if IMAGE_TOKEN in text:
        if role != 'user' or not images:
            why = 'only the human may' if images else 'the row has no image'
            raise ValueError(f'turn {number} says {IMAGE_TOKEN}, but {why}')
        text = text.replace(IMAGE_TOKEN, '').strip()
    return Turn(role, text)


def check_trainable(template: str) -> None:
    """Raises ValueError for a template that cannot be used for training."""
    if template not in ANSWER_ENDINGS:
        raise ValueError(
            f'template {template!r} cannot be used for training: choose one of {", ".join(ANSWER_ENDINGS)}'
        )


def encode_conversation(
    turns: Sequence[Turn],
    images: int,
    processor: Processor,
    template: str = DEFAULT_TEMPLATE,
    max_length: int = 2048,
) -> Example:
    """Turns and the number of their images -> the ids of the conversation, with the answers as targets.

    The ids are those of the processor for the same text, truncated to max_length. The template 'plain', a
    picture and its caption, leaves out the human's text. Raises ValueError if placeholders of images would be
    cut off.
    """
    return _truncate(_encode_all(turns, images, processor, template), images, processor, max_length)


@dataclass(frozen=True)
class LengthLimit:
    """Turns and the number of their images -> whether max_length truncates them, and leaves no answer.

    Only texts that may be too long are tokenized, because that takes longer than all other checks of a row.
    """

    processor: Processor
    template: str
    max_length: int

    def __call__(self, turns: Sequence[Turn], images: int) -> tuple[bool, bool]:
        """ValueError if placeholders of images would be cut off."""
        if self._max_tokens(turns, images) <= self.max_length:
            return False, False
        example = _encode_all(turns, images, self.processor, self.template)
        if len(example.tokens) <= self.max_length:
            return False, False
        return True, bool(
            (_truncate(example, images, self.processor, self.max_length).targets == IGNORE).all()
        )

    def _max_tokens(self, turns: Sequence[Turn], images: int) -> int:
        """An upper bound of the number of tokens: each, except the first, stands for at least a byte."""
        frame = TEMPLATES[self.template]
        framed = sum(len(getattr(frame, turn.role)) + len(turn.text.encode()) for turn in turns)
        pictures = images * (self.processor.patches + len(frame.image))
        return len(frame.default_system) + len(frame.system) + framed + pictures + 2


def _truncate(example: Example, images: int, processor: Processor, max_length: int) -> Example:
    """The first max_length tokens of an example; ValueError if placeholders of images would be cut off."""
    if (example.tokens[max_length:] == processor.image_id).any():
        needed = int(np.flatnonzero(example.tokens == processor.image_id)[-1]) + 1
        raise ValueError(f'its {images} image(s) end at token {needed}: max_length {max_length} is too short')
    return Example(example.tokens[:max_length], example.targets[:max_length])


def _encode_all(turns: Sequence[Turn], images: int, processor: Processor, template: str) -> Example:
    """Like `encode_conversation`, without a limit of length."""
    check_trainable(template)
    if template == 'plain':
        turns = [turn._replace(text='') if turn.role == 'user' else turn for turn in turns]
    text, answers = answer_spans(turns, images, template)
    ids, spans = processor.tokenizer.encode_with_spans(text)
    processor.check_ids(ids)
    is_target = np.zeros(len(ids), bool)
    first, last = np.array(spans).T
    for start, end in answers:
        if shared := np.flatnonzero((first < start) & (last > start)).tolist():
            piece = processor.tokenizer.backend.id_to_token(ids[shared[0]])
            raise ValueError(
                f'the token {piece!r} holds the end of a question and the start of its answer: '
                'use a tokenizer whose tokens do not span words'
            )
        is_target |= (first >= start) & (first < end)
    tokens = np.array(ids, np.int32)
    repeats = np.where(tokens == processor.image_id, processor.patches, 1)
    tokens, is_target = np.repeat(tokens, repeats), np.repeat(is_target, repeats)
    targets = np.full(len(tokens), IGNORE, np.int32)
    targets[:-1] = np.where(is_target[1:], tokens[1:], IGNORE)
    return Example(tokens, targets)


def answer_spans(turns: Sequence[Turn], images: int, template: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the start and end of each answer in it, its ending included."""
    ending = ANSWER_ENDINGS[template]
    newlines = len(ending) - len(ending.rstrip('\n')) if ending.strip() else 0
    answers, text = [], ''
    for number, turn in enumerate(turns):
        if turn.role == 'assistant':
            start = len(render(template, turns[:number], images))
            text = render(template, turns[: number + 1], images)
            answers.append((start, len(text) - newlines))
    return text, answers
