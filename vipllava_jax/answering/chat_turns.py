"""The questions and answers of a chat, and the conversation of them that the processor takes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image

from vipllava_jax.answering.prompts import Marks, image_list, insert_phrases, mark_list
from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import Mark, draw
from vipllava_jax.inputs.prompts import IMAGE_TOKEN, TEMPLATES, Turn
from vipllava_jax.messages import brief

Images = ImageSource | Sequence[ImageSource] | None
# In an answer, because the tokenizer would read the placeholder of an image.
SPELLED_IMAGE_TOKEN = '< image>'


class Question(NamedTuple):
    """A question as it was asked: its text, and its images as they were opened, without marks."""

    text: str
    images: tuple[Image.Image, ...] = ()
    marks: tuple[str, ...] = ()  # each with the number of its image in the chat: '2/point:40,60:red'


class Exchange(NamedTuple):
    """A question and its answer."""

    question: Question
    answer: str = ''
    finish_reason: str = ''  # 'stop', 'length' or 'time'; '' if it was interrupted, or written by the user
    retries: int = 0  # how often the question was asked again


def read_question(text: str, images: Images, marks: Marks, earlier: Sequence[Question]) -> Question:
    """A question that follows earlier ones, with its images opened and its marks numbered.

    A mark without a number is on the first image of the newest question that has any. Raises the errors of
    `check_question`, of `open_image`, and TypeError for arguments of another type.
    """
    if not isinstance(text, str):
        raise TypeError(f'the question is {brief(text)}: expected a string')
    opened = tuple(open_image(image) for image in image_list(images))
    return with_marks(Question(text, opened), marks, earlier)


def with_marks(question: Question, marks: Marks, earlier: Sequence[Question]) -> Question:
    """The question with these marks instead of its own; raises the errors of `read_question`."""
    given = mark_list(marks)
    before = images_of(earlier)
    newest = next((len(q.images) for q in reversed(earlier) if q.images), 0)
    first = len(before) if question.images else max(len(before) - newest, 0)
    question = question._replace(marks=tuple(_numbered(mark, first) for mark in given))
    check_question(question, before)
    return question


def _numbered(mark: Mark | str, first: int) -> str:
    """The text of a mark with the number of its image, that after index `first` if it has none."""
    if isinstance(mark, Mark):
        return f'{first + 1}/{mark}'
    index, parsed = parse_mark(mark)
    return f'{(index if "/" in mark else first) + 1}/{parsed}'


def check_question(question: Question, before: Sequence[Image.Image]) -> None:
    """Raises ValueError for a question that cannot be asked after others with these images.

    That is an empty text, `<image>` in it another number of times than it has images, the number of a mark
    that is not there, or a mark outside its image.
    """
    text, images, marks = question
    if not text.strip():
        raise ValueError('the question is empty: ask something')
    if (placed := text.count(IMAGE_TOKEN)) not in (0, len(images)):
        raise ValueError(
            f'the question has {IMAGE_TOKEN} {placed} times for {len(images)} image(s) of its own: write it '
            'once for each, or leave it out'
        )
    insert_phrases(text, _parsed(marks), advice='add one to this question (marks=[…], /mark SPEC)')
    sizes = [image.size for image in (*before, *images)]
    for index, mark in map(parse_mark, marks):
        if not sizes:
            raise ValueError('there is a mark but no image: give the image that it is on')
        if index >= len(sizes):
            count = 'is 1 image' if len(sizes) == 1 else f'are {len(sizes)} images'
            raise ValueError(f'mark {mark.quoted()} is on image {index + 1}, but in the chat there {count}')
        mark.region(sizes[index])


def _parsed(marks: Sequence[str]) -> list[Mark]:
    return [parse_mark(mark)[1] for mark in marks]


def questions_of(exchanges: Iterable[Exchange]) -> list[Question]:
    return [exchange.question for exchange in exchanges]


def images_of(questions: Iterable[Question]) -> list[Image.Image]:
    """The images of all questions in order, without marks."""
    return [image for question in questions for image in question.images]


def marks_of_images(questions: Sequence[Question]) -> list[tuple[str, ...]]:
    """The marks on each image, in the order in which they were given."""
    marks = [mark for question in questions for mark in question.marks]
    return [
        tuple(mark for mark in marks if parse_mark(mark)[0] == index)
        for index in range(len(images_of(questions)))
    ]


def draw_marks(image: Image.Image, marks: Sequence[str]) -> Image.Image:
    """The image with marks on it, as `vj.draw` draws them; the same image if there are none."""
    return draw(image, _parsed(marks)) if marks else image


def conversation(
    system: str | None, exchanges: Iterable[Exchange], question: Question | None, template: str
) -> list[Turn]:
    """The turns of a chat, at the end those of a question that has no answer yet.

    The images of the first question are where the template puts them. If later ones have images, or a
    question places its own, all are placed by `<image>` in the texts.
    """
    exchanges = [*exchanges]
    questions = questions_of(exchanges) + ([question] if question else [])
    placed = any(q.images for q in questions[1:]) or any(IMAGE_TOKEN in q.text for q in questions)
    texts = [_prompt(q, template if placed else None) for q in questions]
    turns = [] if system is None else [Turn('system', system)]
    for n, text in enumerate(texts):
        turns.append(Turn('user', text))
        if n < len(exchanges):
            answer = exchanges[n].answer.replace(IMAGE_TOKEN, SPELLED_IMAGE_TOKEN)
            turns.append(Turn('assistant', answer))
    return turns


def _prompt(question: Question, template: str | None) -> str:
    """The text with the phrases of its marks and, with a template, an `<image>` for each of its images."""
    text = insert_phrases(question.text, _parsed(question.marks))
    if template is None or IMAGE_TOKEN in text:
        return text
    placeholder = TEMPLATES[template].image if template in TEMPLATES else f'{IMAGE_TOKEN}\n'
    return placeholder * len(question.images) + text


def find_turn(turns: Sequence[Turn], turn: int) -> tuple[int, bool]:
    """The index of a turn's question among the questions, and whether the turn is the answer to it.

    Raises IndexError for the system text, or a turn that is not there.
    """
    if isinstance(turn, bool) or not isinstance(turn, int):
        raise TypeError(f'the turn is {brief(turn)}: expected an index in turns')
    if not -len(turns) <= turn < len(turns):
        raise IndexError(f'there is no turn {turn}: the chat has {len(turns)}')
    if turns[turn].role == 'system':
        raise IndexError(f'turn {turn} is the system text: begin another Chat with another system=')
    index = turn % len(turns) - (turns[0].role == 'system')
    return index // 2, turns[turn].role == 'assistant'
