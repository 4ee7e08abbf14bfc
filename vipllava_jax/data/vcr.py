"""Rows of Visual Commonsense Reasoning: a question about marked objects, an answer and a rationale."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.data.marking import Object, Prompted, mention, polygons_of, styles
from vipllava_jax.files import read_json
from vipllava_jax.inputs.marks import PREPOSITIONS, Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief

FIELDS = (
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
ASKING = ('Look at the picture and answer: ', 'According to the picture, ', 'Going by what you see, ', '')
CHOOSING = ('Choose one of these: ', 'The possible answers are: ', 'It is one of the following: ')
WHY = (
    'Why?',
    'Why do you think so?',
    'What in the picture tells you so?',
    'How do you know?',
    'Explain your answer.',
    'What makes you say so?',
    'Give the reason for your answer.',
    'How did you come to this conclusion?',
)
CHOSEN = (
    '({letter})',
    'The answer is ({letter})',
    '({letter}): {text}',
    'The best answer is ({letter}), {text}',
)


class _Words(NamedTuple):
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
                spoken = ' and '.join(
                    f'the {self._noun(i)} {mention(self.marks[i], self.rng)}' for i in token
                )
                words.append(spoken[:1].upper() + spoken[1:] if n == 0 else spoken)
        return re.sub(r' ([.,?!:;])(?= |$)', r'\1', ' '.join(words))

    def _noun(self, i: int) -> str:
        if self.rng is None or self.rng.random() < 0.5:
            return self.nouns[i]
        return _one(('object', 'instance'), self.rng)


def talk(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None) -> Prompted:
    """The question and its rationale, each with choices in half of the cases; without `rng`, `answering`."""
    if rng is None:
        reasoning(fields, folder)  # so that checking a row, which is done without `rng`, finds all errors
        return answering(fields, folder)
    choices = [_choices(fields, kind) for kind in ('answer', 'rationale')]
    offered = rng.integers(2, size=2)
    shown = [
        texts if given else [texts[label]] for (texts, label), given in zip(choices, offered, strict=True)
    ]
    words = _words(fields, folder, rng, SHAPES, [fields['question'], *shown[0], *shown[1]])
    openings = _one(ASKING, rng) + words.text(fields['question']), _one(WHY, rng)
    turns = []
    for opening, texts, (_, label), given in zip(openings, shown, choices, offered, strict=True):
        spoken = [words.text(tokens) for tokens in texts]
        if given:
            options = ' '.join(f'({LETTERS[n]}) {text}' for n, text in enumerate(spoken))
            asked = f'{opening} {_one(CHOOSING, rng)}{options}'
            answer = _one(CHOSEN, rng).format(letter=LETTERS[label], text=spoken[label])
        else:
            asked, answer = opening, spoken[0]
        turns += [Turn('user', asked), Turn('assistant', answer)]
    return Prompted(turns, (tuple(words.marks.values()),))


def answering(fields: dict[str, Any], folder: Path) -> Prompted:
    """The question with its choices, marks and wording as in evaluation; the answer is a letter."""
    texts, label = _choices(fields, 'answer')
    words = _words(fields, folder, None, ('point',), [fields['question'], *texts])
    question = lettered(words.text(fields['question']), [words.text(tokens) for tokens in texts])
    turns = [Turn('user', question), Turn('assistant', LETTERS[label])]
    return Prompted(turns, (tuple(words.marks.values()),))


def reasoning(fields: dict[str, Any], folder: Path) -> Prompted:
    """The question, its answer and the rationales to choose from, as in evaluation."""
    (answers, right), (texts, label) = _choices(fields, 'answer'), _choices(fields, 'rationale')
    words = _words(fields, folder, None, ('point',), [fields['question'], answers[right], *texts])
    question = lettered(
        'I give you a question and its answer, I need you to provide a rationale explaining why the answer '
        f'is right. "{words.text(fields["question"])}" The answer is "{words.text(answers[right])}".'
        'What is the rationale for this decision?',
        [words.text(tokens) for tokens in texts],
    )
    turns = [Turn('user', question), Turn('assistant', LETTERS[label])]
    return Prompted(turns, (tuple(words.marks.values()),))


def lettered(question: str, options: Sequence[str]) -> str:
    """A question, its options with letters, and the instruction to answer with a letter."""
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f'{len(options)} options: expected 2 to {len(LETTERS)}')
    lines = [f'{letter}. {option}' for letter, option in zip(LETTERS, options, strict=False)]
    return '\n'.join([question, *lines, "Answer with the option's letter from the given choices directly."])


def _choices(fields: dict[str, Any], kind: str) -> tuple[list[Any], int]:
    texts, label = fields[f'{kind}_choices'], fields[f'{kind}_label']
    if not isinstance(texts, list):
        raise ValueError(f'"{kind}_choices" is {brief(texts)}: expected a list of lists')
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(texts):
        raise ValueError(f'"{kind}_label" is {brief(label)}, but there are {len(texts)} "{kind}_choices"')
    return texts, label


def _words(
    fields: dict[str, Any],
    folder: Path,
    rng: np.random.Generator | None,
    shapes: Sequence[str],
    texts: Sequence[Any],
) -> _Words:
    """The texts' objects as marks, in the order of their numbers."""
    for tokens in texts:
        _check_tokens(tokens)
    known = _objects(fields, folder)
    spoken = sorted({i for tokens in texts for token in tokens if not isinstance(token, str) for i in token})
    nouns = fields['class_names']
    if not isinstance(nouns, list) or not all(isinstance(noun, str) for noun in nouns):
        raise ValueError(f'"class_names" is {brief(nouns)}: expected a list of texts')
    if spoken and not (spoken[0] >= 0 and spoken[-1] < min(len(known), len(nouns))):
        raise ValueError(f'it mentions object {spoken[-1]}, but {len(known)} boxes are known')
    looks = styles(len(spoken), rng, shapes)
    return _Words(nouns, {i: known[i].mark(*look) for i, look in zip(spoken, looks, strict=True)}, rng)


def _check_tokens(tokens: Any) -> None:
    """Checks a list of words and lists of object numbers; a text would count as a list of its letters."""
    for token in tokens if isinstance(tokens, list) else [None]:
        numbers = token if isinstance(token, list) else []
        whole = all(isinstance(i, int) and not isinstance(i, bool) for i in numbers)
        if not isinstance(token, (str, list)) or not whole:
            raise ValueError(
                f'expected a list of words and of lists of object numbers, found {brief(tokens)}'
            )


def _objects(fields: dict[str, Any], folder: Path) -> list[Object]:
    """Reads the file of boxes and outlines; its path in the authors' rows starts with ./dataset."""
    meta = read_json(folder / str(fields['meta_dir']).removeprefix('./dataset/'))
    outlines = meta.get('segms') or [None] * len(meta['boxes'])
    return [
        Object(box[:4], polygons_of(outline)) for box, outline in zip(meta['boxes'], outlines, strict=True)
    ]


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]
