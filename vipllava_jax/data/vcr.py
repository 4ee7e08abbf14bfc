"""Rows of Visual Commonsense Reasoning: a question about marked objects, an answer and a rationale."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.data.marking import (
    ImageObject,
    MarkedConversation,
    choose_styles,
    mark_phrase,
    valid_polygons,
)
from vipllava_jax.files import read_json
from vipllava_jax.inputs.marks import PREPOSITIONS, Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief

REQUIRED_FIELDS = (
    'meta_dir',
    'class_names',
    'question',
    'answer_choices',
    'answer_label',
    'rationale_choices',
    'rationale_label',
)
LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
SHAPES = tuple(shape for shape in PREPOSITIONS if shape != 'point')
QUESTION_OPENINGS = (
    'Look at the picture and answer: ',
    'According to the picture, ',
    'Going by what you see, ',
    '',
)
CHOICE_OPENINGS = ('Choose one of these: ', 'The possible answers are: ', 'It is one of the following: ')
RATIONALE_QUESTIONS = (
    'Why?',
    'Why do you think so?',
    'What in the picture tells you so?',
    'How do you know?',
    'Explain your answer.',
    'What makes you say so?',
    'Give the reason for your answer.',
    'How did you come to this conclusion?',
)
ANSWER_FORMATS = (
    '({letter})',
    'The answer is ({letter})',
    '({letter}): {text}',
    'The best answer is ({letter}), {text}',
)


class _Phrasing(NamedTuple):
    """Turns a row's token lists, which mention objects by number, into text with the objects' marks."""

    nouns: Sequence[str]
    marks: dict[int, Mark]
    rng: np.random.Generator | None

    def text(self, tokens: Any) -> str:
        """['Is', [0, 1], 'sad', '?'] -> 'Is the person within the red ellipse and the dog … sad?'"""
        words = []
        for n, token in enumerate(tokens):
            if isinstance(token, str):
                words.append(token)
            else:
                phrases = ' and '.join(
                    f'the {self._noun(i)} {mark_phrase(self.marks[i], self.rng)}' for i in token
                )
                words.append(phrases[:1].upper() + phrases[1:] if n == 0 else phrases)
        return re.sub(r' ([.,?!:;])(?= |$)', r'\1', ' '.join(words))

    def _noun(self, i: int) -> str:
        if self.rng is None or self.rng.random() < 0.5:
            return self.nouns[i]
        return _pick(('object', 'instance'), self.rng)


def training_conversation(
    fields: dict[str, Any], folder: Path, rng: np.random.Generator | None
) -> MarkedConversation:
    """The question and its rationale, each with choices half of the time.

    Without `rng`, the result is that of `answer_question`.
    """
    if rng is None:
        rationale_question(
            fields, folder
        )  # so that checking a row, which is done without `rng`, finds all errors
        return answer_question(fields, folder)
    choices = [_choices(fields, part) for part in ('answer', 'rationale')]
    with_choices = rng.integers(2, size=2)
    listed = [
        texts if shows_choices else [texts[label]]
        for (texts, label), shows_choices in zip(choices, with_choices, strict=True)
    ]
    phrasing = _make_phrasing(fields, folder, rng, SHAPES, [fields['question'], *listed[0], *listed[1]])
    prompts = (
        _pick(QUESTION_OPENINGS, rng) + phrasing.text(fields['question']),
        _pick(RATIONALE_QUESTIONS, rng),
    )
    turns = []
    for prompt, texts, (_, label), shows_choices in zip(prompts, listed, choices, with_choices, strict=True):
        phrases = [phrasing.text(tokens) for tokens in texts]
        if shows_choices:
            options = ' '.join(f'({LETTERS[n]}) {text}' for n, text in enumerate(phrases))
            question = f'{prompt} {_pick(CHOICE_OPENINGS, rng)}{options}'
            answer = _pick(ANSWER_FORMATS, rng).format(letter=LETTERS[label], text=phrases[label])
        else:
            question, answer = prompt, phrases[0]
        turns += [Turn('user', question), Turn('assistant', answer)]
    return MarkedConversation(turns, (tuple(phrasing.marks.values()),))


def answer_question(fields: dict[str, Any], folder: Path) -> MarkedConversation:
    """The question with its choices, marks and wording as in evaluation; the answer is a letter."""
    texts, label = _choices(fields, 'answer')
    phrasing = _make_phrasing(fields, folder, None, ('point',), [fields['question'], *texts])
    question = multiple_choice(phrasing.text(fields['question']), [phrasing.text(tokens) for tokens in texts])
    turns = [Turn('user', question), Turn('assistant', LETTERS[label])]
    return MarkedConversation(turns, (tuple(phrasing.marks.values()),))


def rationale_question(fields: dict[str, Any], folder: Path) -> MarkedConversation:
    """The question, its answer and the rationales to choose from, as in evaluation."""
    (answers, correct), (texts, label) = _choices(fields, 'answer'), _choices(fields, 'rationale')
    phrasing = _make_phrasing(
        fields, folder, None, ('point',), [fields['question'], answers[correct], *texts]
    )
    question = multiple_choice(
        'I give you a question and its answer, I need you to provide a rationale explaining why the answer '
        f'is right. "{phrasing.text(fields["question"])}" The answer is "{phrasing.text(answers[correct])}".'
        'What is the rationale for this decision?',
        [phrasing.text(tokens) for tokens in texts],
    )
    turns = [Turn('user', question), Turn('assistant', LETTERS[label])]
    return MarkedConversation(turns, (tuple(phrasing.marks.values()),))


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """A question, its options with letters, and the instruction to answer with a letter."""
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f'{len(options)} options: expected 2 to {len(LETTERS)}')
    lines = [f'{letter}. {option}' for letter, option in zip(LETTERS, options, strict=False)]
    return '\n'.join([question, *lines, "Answer with the option's letter from the given choices directly."])


def _choices(fields: dict[str, Any], part: str) -> tuple[list[Any], int]:
    texts, label = fields[f'{part}_choices'], fields[f'{part}_label']
    if not isinstance(texts, list):
        raise ValueError(f'"{part}_choices" is {brief(texts)}: expected a list of lists')
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(texts):
        raise ValueError(f'"{part}_label" is {brief(label)}, but there are {len(texts)} "{part}_choices"')
    return texts, label


def _make_phrasing(
    fields: dict[str, Any],
    folder: Path,
    rng: np.random.Generator | None,
    shapes: Sequence[str],
    texts: Sequence[Any],
) -> _Phrasing:
    """The phrasing of texts, with a mark for each object that they mention, in the order of their numbers."""
    for tokens in texts:
        _check_tokens(tokens)
    objects = _read_objects(fields, folder)
    mentioned = sorted(
        {i for tokens in texts for token in tokens if not isinstance(token, str) for i in token}
    )
    nouns = fields['class_names']
    if not isinstance(nouns, list) or not all(isinstance(noun, str) for noun in nouns):
        raise ValueError(f'"class_names" is {brief(nouns)}: expected a list of strings')
    if mentioned and not (mentioned[0] >= 0 and mentioned[-1] < min(len(objects), len(nouns))):
        raise ValueError(f'it mentions object {mentioned[-1]}, but {len(objects)} boxes are known')
    styles = choose_styles(len(mentioned), rng, shapes)
    return _Phrasing(
        nouns, {i: objects[i].mark(*style) for i, style in zip(mentioned, styles, strict=True)}, rng
    )


def _check_tokens(tokens: Any) -> None:
    """Checks a list of words and lists of object numbers; a string would be read as a list of characters."""
    for token in tokens if isinstance(tokens, list) else [None]:
        numbers = token if isinstance(token, list) else []
        valid = all(isinstance(i, int) and not isinstance(i, bool) for i in numbers)
        if not isinstance(token, (str, list)) or not valid:
            raise ValueError(
                f'expected a list of words and of lists of object numbers, found {brief(tokens)}'
            )


def _read_objects(fields: dict[str, Any], folder: Path) -> list[ImageObject]:
    """Reads the file of boxes and outlines; its path in the authors' rows starts with ./dataset."""
    meta = read_json(folder / str(fields['meta_dir']).removeprefix('./dataset/'))
    outlines = meta.get('segms') or [None] * len(meta['boxes'])
    return [
        ImageObject(box[:4], valid_polygons(outline))
        for box, outline in zip(meta['boxes'], outlines, strict=True)
    ]


def _pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]
