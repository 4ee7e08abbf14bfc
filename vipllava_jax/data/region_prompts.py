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
    ImageObject,
    MarkedConversation,
    choose_styles,
    mark_phrase,
    objects_from_boxes,
    read_objects,
    replace_box_tags,
    text_field,
)
from vipllava_jax.inputs.coordinates import is_number
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import PREPOSITIONS, Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief

SHAPES = tuple(PREPOSITIONS)
PLAIN_SHAPES = ('rectangle', 'ellipse')
LINE_WIDTH = 3.0  # pixels, where the width is not random


def make_conversation(
    fields: dict[str, Any], images: int, folder: Path, rng: np.random.Generator | None
) -> MarkedConversation:
    """A row, its number of pictures and their folder -> its conversation and marks; ValueError if invalid.

    The part of its id before the first '-' names its data set. Any other row, and one that lacks fields of
    that data set, has the general format. Without a generator, marks and wording are those of evaluation.
    """
    if name := find_data_set(fields):
        if images != 1:
            raise ValueError(f'a row of {name} has one image, found {images}')
        return DATA_SETS[name][1](fields, folder, rng)
    key = str(fields.get('id') or '').partition('-')[0]
    required, make = DATA_SETS.get(key, ((), None))
    if make and not fields.get('conversations'):
        raise ValueError(f'a row of {key} needs {", ".join(required)}, or a conversation')
    return _general_conversation(
        fields, images, rng, PLAIN_SHAPES if key == 'vg_rel' else SHAPES, vary_phrases=key == 'vg_rel'
    )


def find_data_set(fields: dict[str, Any]) -> str | None:
    """The authors' data set that a row belongs to, a key of DATA_SETS; None if it has the general format."""
    key, _, rest = str(fields.get('id') or '').partition('-')
    required, make = DATA_SETS.get(key, ((), None))
    complete = all(fields.get(name) is not None for name in required)
    return key if make and complete and not rest.startswith('gpt4v') else None


def _general_conversation(
    fields: dict[str, Any],
    images: int,
    rng: np.random.Generator | None,
    shapes: Sequence[str],
    vary_phrases: bool,
) -> MarkedConversation:
    """A row in the general format, with `bboxes` or exact `marks`, to which `<bboxN>` in its texts refers."""
    turns = conversations.parse_conversation(fields.get('conversations'), images)
    if fields.get('marks'):
        marked = _exact_marks(fields, images)
    else:
        marked = _marks_of_boxes(fields, images, rng, shapes)
    phrases = [mark_phrase(mark, rng if vary_phrases else None) for _, mark in marked]
    turns = [
        turn._replace(text=replace_box_tags(turn.text, phrases, f'turn {n}')) for n, turn in enumerate(turns)
    ]
    return MarkedConversation(
        turns, tuple(tuple(mark for image, mark in marked if image == i) for i in range(images))
    )


def _exact_marks(fields: dict[str, Any], images: int) -> list[tuple[int, Mark]]:
    """The `marks` of a row, each with the number of its picture from 0."""
    texts = fields['marks']
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'"marks" is {brief(texts)}: expected a list of strings')
    marked = [parse_mark(text) for text in texts]
    for text, (image, _) in zip(texts, marked, strict=True):
        if image >= images:
            raise ValueError(f'mark {brief(text)} is on image {image + 1}, but the row has {images}')
    return marked


def _marks_of_boxes(
    fields: dict[str, Any], images: int, rng: np.random.Generator | None, shapes: Sequence[str]
) -> list[tuple[int, Mark]]:
    """Marks for the `bboxes` of a row, all on its first picture."""
    objects = read_objects(fields)
    if objects and not images:
        raise ValueError('it has "bboxes", but no image')
    # In the authors' vg_rel rows, the second of two different shapes has the colour of the first.
    styles = choose_styles(len(objects), rng, shapes)
    return [(0, item.mark(*style)) for item, style in zip(objects, styles, strict=True)]


def _question_and_answer(question: str, answer: str, marks: Sequence[Mark]) -> MarkedConversation:
    return MarkedConversation([Turn('user', question), Turn('assistant', answer)], (tuple(marks),))


def _require_objects(fields: dict[str, Any], count: int | None = None) -> list[ImageObject]:
    objects = read_objects(fields)
    if not objects or (count is not None and len(objects) != count):
        raise ValueError(f'"bboxes" holds {len(objects)} boxes, expected {count or "one or more"}')
    return objects


def _refcocog(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None) -> MarkedConversation:
    """A RefCOCOg row: describes a marked object in a short phrase."""
    # In the authors' code, a point needs a segmentation.
    (item,), (style,) = _require_objects(fields, 1), choose_styles(1, rng)
    mark = item.mark(*style)
    if rng is not None and rng.random() < 0.25:
        wordings = 'Describe the object with the visual prompt.', 'Describe the pointed region.'
        question = wordings[rng.integers(2)]
    else:
        question = f'Describe the object {mark.phrase}.'  # the authors' code inserts no phrase
    # In the authors' code, this prompt and vg_rel's have no image placeholder. Here images always come first.
    return _question_and_answer(
        f'{question} Please provide a short phrase.', text_field(fields, 'answer'), [mark]
    )


def _vg_rel(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None) -> MarkedConversation:
    """A Visual Genome row: the relation between two marked objects."""
    objects = _require_objects(fields, 2)
    styles = choose_styles(2, rng, PLAIN_SHAPES)
    marks = [item.mark(*style) for item, style in zip(objects, styles, strict=True)]
    question = (
        f'Please describe the relationship between the subject {marks[0].phrase} and the object '
        f'{marks[1].phrase}. Provide a short triplet (subject, relationship, object) to represent this. '
        'Here, the subject and object are noun phrases, and the relationship can be verbs or prepositions.'
    )
    return _question_and_answer(question, text_field(fields, 'answer'), marks)


def visual7w(
    fields: dict[str, Any], folder: Path, rng: np.random.Generator | None = None
) -> MarkedConversation:
    """A Visual7W row: which marked object answers a question, by its letter."""
    # In the authors' code, an error message becomes the question unless there are exactly four boxes.
    objects, answer = _require_objects(fields), fields['answer']
    if answer not in fields['bboxes']:
        raise ValueError(f'"answer" is {brief(answer)}, which is none of the "bboxes"')
    styles = choose_styles(len(objects), rng, ('rectangle',))
    marks = [item.mark(*style, LINE_WIDTH) for item, style in zip(objects, styles, strict=True)]
    # In evaluation, the authors' code leaves out 'the' at random.
    options = [f'The object {mark_phrase(mark, rng)}' for mark in marks]
    question = vcr.multiple_choice(text_field(fields, 'question'), options)
    return _question_and_answer(question, vcr.LETTERS[fields['bboxes'].index(answer)], marks)


def point_qa(
    fields: dict[str, Any], folder: Path, rng: np.random.Generator | None = None
) -> MarkedConversation:
    """A PointQA-LookTwice row: a question about all objects of the same kind as a marked one."""
    mark = _require_objects(fields)[0].mark('rectangle', 'red', LINE_WIDTH)
    question = (
        f'{text_field(fields, "general_question")} The exemplary object is within the rectangle.\n'
        'Answer the question using a single word or phrase.'
    )
    answer = fields['answer']  # a string, or a number if it is a count
    if is_number(answer):
        answer = str(answer)
    return _question_and_answer(question, text_field({'answer': answer}, 'answer'), [mark])


PROMPTS_WITHOUT_MARKS = (
    'Describe the picture with the objects that the visual prompts mark, without a word of the prompts.',
    'What does the picture show? Name the marked objects in one sentence, but not the marks on them.',
)
PROMPTS_WITH_MARKS = (
    'Describe the picture with the objects that the visual prompts mark, and say which prompt marks which.',
    'What does the picture show? Name each marked object in one sentence, and the mark on it, as in "a dog '
    'within the red rectangle".',
)


def _flickr30k(fields: dict[str, Any], folder: Path, rng: np.random.Generator | None) -> MarkedConversation:
    """A Flickr30k row: a caption; half of the time it names the marks on its objects."""
    if not isinstance(fields['bbox'], list):
        raise ValueError(f'"bbox" is {brief(fields["bbox"])}: expected a list of lists of boxes')
    groups = [objects_from_boxes(boxes, f'"bbox"[{n}]') for n, boxes in enumerate(fields['bbox'])]
    styles = choose_styles(len(groups), rng, ('rectangle', 'ellipse', 'arrow'))
    marks = [[item.mark(*style) for item in group] for group, style in zip(groups, styles, strict=True)]
    names_marks, wording, lists_marks = (True, 0, False) if rng is None else map(int, rng.integers(2, size=3))
    question = (PROMPTS_WITH_MARKS if names_marks else PROMPTS_WITHOUT_MARKS)[wording]
    if lists_marks and any(marks):
        *others, last = [group[0].phrase.partition(' the ')[2] for group in marks if group]
        question += f' The visual prompts are: {", ".join(others)}{" and " * bool(others)}{last}.'
    # The authors' caption leaves out marks of unnamed colours, and mentions marks that are not drawn.
    phrases = [f' {group[0].phrase}' if names_marks and group else '' for group in marks]
    caption = replace_box_tags(
        text_field(fields, 'grounding').replace(' <bbox', '<bbox'), phrases, 'the caption'
    )
    return _question_and_answer(question, _sentence(caption), [mark for group in marks for mark in group])


def _sentence(text: str) -> str:
    """'a dog , asleep' -> 'A dog, asleep.'"""
    text = re.sub(r'\s+([,.!?])', r'\1', ' '.join(text.split()))
    return text[:1].upper() + text[1:] + ('' if text.endswith(('.', '!', '?')) else '.')


MakeConversation = Callable[[dict[str, Any], Path, np.random.Generator | None], MarkedConversation]
DATA_SETS: dict[
    str, tuple[tuple[str, ...], MakeConversation]
] = {  # the fields that a row of each data set must have
    'refcocog': (('bboxes', 'answer'), _refcocog),
    'vg_rel': (('bboxes', 'answer'), _vg_rel),
    'v7w': (('bboxes', 'question', 'answer'), visual7w),
    'pointQA_twice': (('bboxes', 'general_question', 'answer'), point_qa),
    'flickr30k': (('bbox', 'grounding'), _flickr30k),
    'vcr': (vcr.REQUIRED_FIELDS, vcr.training_conversation),
}
