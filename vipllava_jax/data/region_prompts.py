"""Turns rows into conversations and marks: a general format, and those of the authors' data sets.

The results are those of the authors' code, except where a comment says "Fixed". Also fixed, for all data
sets: marks and wording are chosen again in each epoch (in the authors' code, those of the first epoch stay in
the row), and a row that fails is reported.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vipllava_jax.data import conversations, vcr
from vipllava_jax.data.marking import (
    Object,
    Prompted,
    inserted,
    mention,
    objects,
    places,
    styles,
    text_of,
)
from vipllava_jax.inputs.coordinates import is_number
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import PREPOSITIONS, Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief

SHAPES = tuple(PREPOSITIONS)
PLAIN = ('rectangle', 'ellipse')
CONSTANT = 3.0  # the width of a line where it is not random


def compose(fields: dict[str, Any], images: int, folder: Path, rng: np.random.Generator | None) -> Prompted:
    """A row, its number of pictures and their folder -> its conversation and marks; ValueError if invalid.

    The part of its id before the first '-' names its data set. Any other row, and one that lacks fields of
    that data set, has the general format. Without a generator, marks and wording are those of evaluation.
    """
    if name := data_set(fields):
        if images != 1:
            raise ValueError(f'a row of {name} has one image, found {images}')
        return FORMS[name][1](fields, folder, rng)
    key = str(fields.get('id') or '').partition('-')[0]
    needed, form = FORMS.get(key, ((), None))
    if form and not fields.get('conversations'):
        raise ValueError(f'a row of {key} needs {", ".join(needed)}, or a conversation')
    return _tagged(fields, images, rng, PLAIN if key == 'vg_rel' else SHAPES, varied=key == 'vg_rel')


def data_set(fields: dict[str, Any]) -> str | None:
    """The authors' data set that a row belongs to, a key of FORMS; None if it has the general format."""
    key, _, kind = str(fields.get('id') or '').partition('-')
    needed, form = FORMS.get(key, ((), None))
    whole = form and not kind.startswith('gpt4v') and all(fields.get(name) is not None for name in needed)
    return key if whole else None


def _tagged(
    fields: dict[str, Any], images: int, rng: np.random.Generator | None, shapes: Sequence[str], varied: bool
) -> Prompted:
    """A row in the general format, with `bboxes` or exact `marks`, to which `<bboxN>` in its texts refers."""
    turns = conversations.read(fields.get('conversations'), images)
    marked = _written(fields, images) if fields.get('marks') else _boxed(fields, images, rng, shapes)
    phrases = [mention(mark, rng if varied else None) for _, mark in marked]
    turns = [turn._replace(text=inserted(turn.text, phrases, f'turn {n}')) for n, turn in enumerate(turns)]
    return Prompted(turns, tuple(tuple(mark for at, mark in marked if at == i) for i in range(images)))


def _written(fields: dict[str, Any], images: int) -> list[tuple[int, Mark]]:
    texts = fields['marks']
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'"marks" is {brief(texts)}: expected a list of texts')
    marked = [parse_mark(text) for text in texts]
    for text, (at, _) in zip(texts, marked, strict=True):
        if at >= images:
            raise ValueError(f'mark {brief(text)} is on image {at + 1}, but the row has {images}')
    return marked


def _boxed(
    fields: dict[str, Any], images: int, rng: np.random.Generator | None, shapes: Sequence[str]
) -> list[tuple[int, Mark]]:
    marked = objects(fields)
    if marked and not images:
        raise ValueError('it has "bboxes", but no image')
    # Fixed: in vg_rel's rows the second of two different shapes had the colour of the first.
    looks = styles(len(marked), rng, shapes)
    return [(0, place.mark(*look)) for place, look in zip(marked, looks, strict=True)]


def _asked(question: str, answer: str, marks: Sequence[Mark]) -> Prompted:
    return Prompted([Turn('user', question), Turn('assistant', answer)], (tuple(marks),))


def _places(fields: dict[str, Any], count: int | None = None) -> list[Object]:
    places = objects(fields)
    if not places or (count is not None and len(places) != count):
        raise ValueError(f'"bboxes" holds {len(places)} boxes, expected {count or "one or more"}')
    return places


def _refcocog(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None) -> Prompted:
    """A RefCOCOg row: describes a marked object in a short phrase."""
    # Fixed: a point no longer needs a segmentation.
    (place,), (look,) = _places(fields, 1), styles(1, rng)
    mark = place.mark(*look)
    if rng is not None and rng.random() < 0.25:
        wordings = 'Describe the object with the visual prompt.', 'Describe the pointed region.'
        asked = wordings[rng.integers(2)]
    else:
        asked = f'Describe the object {mark.phrase}.'  # Fixed: the phrase was not inserted.
    # Fixed, here and in vg_rel: the prompt had no image placeholder. Now every row's pictures come first.
    return _asked(f'{asked} Please provide a short phrase.', text_of(fields, 'answer'), [mark])


def _vg_rel(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None) -> Prompted:
    """A Visual Genome row: the relation between two marked objects."""
    places = _places(fields, 2)
    looks = styles(2, rng, PLAIN)
    marks = [place.mark(*look) for place, look in zip(places, looks, strict=True)]
    question = (
        f'Please describe the relationship between the subject {marks[0].phrase} and the object '
        f'{marks[1].phrase}. Provide a short triplet (subject, relationship, object) to represent this. '
        'Here, the subject and object are noun phrases, and the relationship can be verbs or prepositions.'
    )
    return _asked(question, text_of(fields, 'answer'), marks)


def visual7w(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None = None) -> Prompted:
    """A Visual7W row: which marked object answers a question, by its letter."""
    # Fixed: without exactly four boxes, an error message became the question.
    places, answer = _places(fields), fields['answer']
    if answer not in fields['bboxes']:
        raise ValueError(f'"answer" is {brief(answer)}, which is none of the "bboxes"')
    looks = styles(len(places), rng, ('rectangle',))
    marks = [place.mark(*look, CONSTANT) for place, look in zip(places, looks, strict=True)]
    # Fixed: in evaluation 'the' was left out at random.
    options = [f'The object {mention(mark, rng)}' for mark in marks]
    question = vcr.lettered(text_of(fields, 'question'), options)
    return _asked(question, vcr.LETTERS[fields['bboxes'].index(answer)], marks)


def point_qa(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None = None) -> Prompted:
    """A PointQA-LookTwice row: a question about all objects of the same kind as a marked one."""
    mark = _places(fields)[0].mark('rectangle', 'red', CONSTANT)
    question = (
        f'{text_of(fields, "general_question")} The exemplary object is within the rectangle.\n'
        'Answer the question using a single word or phrase.'
    )
    answer = fields['answer']  # a text, or a number if it is a count
    if is_number(answer):
        answer = str(answer)
    return _asked(question, text_of({'answer': answer}, 'answer'), [mark])


NAMELESS = (
    'Describe the picture with the objects that the visual prompts mark, without a word of the prompts.',
    'What does the picture show? Name the marked objects in one sentence, but not the marks on them.',
)
NAMED = (
    'Describe the picture with the objects that the visual prompts mark, and say which prompt marks which.',
    'What does the picture show? Name each marked object in one sentence, and the mark on it, as in "a dog '
    'within the red rectangle".',
)


def _flickr30k(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None) -> Prompted:
    """A Flickr30k row: a caption, in half of the cases with marks on the objects that it mentions."""
    if not isinstance(fields['bbox'], list):
        raise ValueError(f'"bbox" is {brief(fields["bbox"])}: expected a list of lists of boxes')
    groups = [places(boxes, f'"bbox"[{n}]') for n, boxes in enumerate(fields['bbox'])]
    looks = styles(len(groups), rng, ('rectangle', 'ellipse', 'arrow'))
    marks = [[place.mark(*look) for place in group] for group, look in zip(groups, looks, strict=True)]
    named, wording, hinted = (True, 0, False) if rng is None else map(int, rng.integers(2, size=3))
    question = (NAMED if named else NAMELESS)[wording]
    if hinted and any(marks):
        spoken = [group[0].phrase.partition(' the ')[2] for group in marks if group]
        *others, last = spoken
        question += f' The visual prompts are: {", ".join(others)}{" and " * bool(others)}{last}.'
    # Fixed: the caption left out marks of unnamed colours, and mentioned marks that are not drawn.
    phrases = [f' {group[0].phrase}' if named and group else '' for group in marks]
    caption = inserted(text_of(fields, 'grounding').replace(' <bbox', '<bbox'), phrases, 'the caption')
    return _asked(question, _sentence(caption), [mark for group in marks for mark in group])


def _sentence(text: str) -> str:
    """'a dog , asleep' -> 'A dog, asleep.'"""
    text = re.sub(r'\s+([,.!?])', r'\1', ' '.join(text.split()))
    return text[:1].upper() + text[1:] + ('' if text.endswith(('.', '!', '?')) else '.')


Form = Callable[[dict[str, Any], Path, np.random.Generator | None], Prompted]
FORMS: dict[str, tuple[tuple[str, ...], Form]] = {  # the fields that a row of each data set must have
    'refcocog': (('bboxes', 'answer'), _refcocog),
    'vg_rel': (('bboxes', 'answer'), _vg_rel),
    'v7w': (('bboxes', 'question', 'answer'), visual7w),
    'pointQA_twice': (('bboxes', 'general_question', 'answer'), point_qa),
    'flickr30k': (('bbox', 'grounding'), _flickr30k),
    'vcr': (vcr.FIELDS, vcr.talk),
}
