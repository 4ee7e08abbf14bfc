"""`vipllava demo`: asks the bundled model questions about a marked picture of its small world."""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import click

from vipllava_jax.cli.numbers import Whole
from vipllava_jax.cli.pictures import drawn, mark_option, phrased, save
from vipllava_jax.cli.waiting import spinner
from vipllava_jax.files import check_output
from vipllava_jax.messages import safe_answer

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.demo.questions import Question, View
    from vipllava_jax.inputs.marks import Mark
    from vipllava_jax.loading import Model

BLANK = ' \t\r\n\ufeff'  # stripped from lines on stdin, of which the first may begin with a byte order mark
LONGEST_LINE = 1 << 16  # characters of a question on stdin
LONGEST = 64  # tokens per answer
ROWS = 5  # questions per batch; fewer are padded, so that only one shape is compiled
TYPES = ('kind', 'describe', 'position', 'neighbour', 'alike')  # of the default questions
# Wordings that the model knows, but that are not natural English.
CLUMSY = ('What is next ', 'What is with ', 'What do you see as ', 'kind of thing is the thing ', 'are like ')


class Shown(NamedTuple):
    """A picture with marks, and questions about it with their right answers if they are known."""

    picture: 'Image'
    marks: 'list[Mark]'
    asked: list[tuple[str, str | None]]


@click.command()
@click.argument('questions', nargs=-1)
@click.option('--seed', type=Whole(0), help='Which picture.  [default: another one each time]')
@click.option('--image', metavar='FILE', help='A picture of your own instead.')
@mark_option
@click.option('--output', metavar='FILE', default='demo.png', show_default=True, help='Where it is saved.')
@click.option('--chat', is_flag=True, help='Go on asking, a question a line.')
def demo(
    questions: tuple[str, ...],
    seed: int | None,
    image: str | None,
    marks: tuple[str, ...],
    output: str,
    chat: bool,
) -> None:
    """Watch a small bundled model look at marked pictures of the world that it was trained on.

    It draws a picture of coloured shapes, marks one of them, asks questions, and prints the model's answers
    next to the right ones. Nothing is downloaded. QUESTIONS are asked instead, if there are any; {mark} in
    them is replaced by the mark's phrase. Other commands use the same model with `--model demo`.

    \b
    Examples:
      vipllava demo
      vipllava demo --seed 7 "What is left of the object {mark}?" --chat
      vipllava demo --image demo.png --mark arrow:120,80,180,140:blue --output marked.png "What is {mark}?"
    """
    if not all(map(str.strip, questions)):
        raise ValueError('a question is empty: leave it out, or ask something')
    if image is None and marks:
        raise ValueError('--mark needs an --image: without one the picture and its mark are made')
    from vipllava_jax.loading import DEMO, load, locate

    check_output(Path(output), [locate(DEMO), *([Path(image)] if image is not None else [])])
    shown = _own(image, marks) if image is not None else made(secrets.randbits(31) if seed is None else seed)
    if questions:
        shown = shown._replace(asked=[(phrased(question, shown.marks), None) for question in questions])
    save(shown.picture, output)
    with spinner('loading; the first time, compiling …'):
        model = load(DEMO, dtype='float32', progress=False)  # every CPU multiplies float32 natively
        answers = answer(model, shown.picture, [question for question, _ in shown.asked])
    click.echo(f'{output}: a picture with {_told(shown.marks)}')
    for (question, right), said in zip(shown.asked, answers, strict=True):
        verdict = '' if right is None else _verdict(said, right)
        click.echo(f'\n{question}\n  {safe_answer(said)}{verdict}')
    if chat:
        for question in _lines():
            click.echo('  ' + safe_answer(_reply(model, shown, question)))


def made(seed: int) -> Shown:
    """A random picture with one mark, and questions about it."""
    from vipllava_jax.demo.drawing import picture
    from vipllava_jax.demo.marking import draw_marks, make_marks
    from vipllava_jax.demo.questions import View
    from vipllava_jax.demo.world import make_scene

    rng = Random(seed)
    scene = make_scene(rng)
    marks = make_marks(rng, scene, 1)
    view = View(scene, marks)
    asked = [question for type in TYPES if (question := _plainly(rng, view, type))]
    return Shown(
        draw_marks(picture(scene), marks, None),
        [marked.mark for marked in marks],
        [(question.text, question.answer) for question in asked],
    )


def _plainly(rng: Random, view: 'View', type: str) -> 'Question | None':
    """A question of a type in natural wording, if there is one for this view."""
    from vipllava_jax.demo.asking import ask

    tries = (question for _ in range(20) for question in ask(rng, view, 1, [type]))
    return next((question for question in tries if not any(words in question.text for words in CLUMSY)), None)


def _own(image: str, specs: tuple[str, ...]) -> Shown:
    """The user's picture and marks, and questions that fit any picture."""
    pictures, marks = drawn([image], specs)
    first = f'What is {marks[0].phrase}?' if marks else 'How many objects are there?'
    return Shown(pictures[0], marks, [(first, None)])


def answer(model: 'Model', picture: 'Image', questions: list[str]) -> list[str]:
    """The model's answers to questions about the picture; each question is a separate conversation."""
    from vipllava_jax.generation.decoding import generate

    said: list[str] = []
    for some in (questions[n : n + ROWS] for n in range(0, len(questions), ROWS)):
        batch = model.processor([some[n % len(some)] for n in range(ROWS)], [[picture]] * ROWS)
        out = generate(model.params, batch, cfg=model.cfg, max_new_tokens=LONGEST)
        said += model.processor.decode(out)[: len(some)]
    return said


def _reply(model: 'Model', shown: Shown, question: str) -> str:
    """The answer, or the error of the question."""
    try:
        return answer(model, shown.picture, [phrased(question, shown.marks)])[0]
    except ValueError as error:
        return f'vipllava: {error}'


def _told(marks: 'list[Mark]') -> str:
    article = {'ellipse': 'an', 'arrow': 'an', 'orange': 'an', 'aqua': 'an'}
    named = [f'{mark.color} {mark.shape}' if isinstance(mark.color, str) else mark.shape for mark in marks]
    return ', '.join(f'{article.get(name.split()[0], "a")} {name}' for name in named) or 'no mark'


def _verdict(said: str, right: str) -> str:
    return '  (right)' if said == right else f'  (wrong; right: {right})'


def _lines() -> Iterator[str]:
    """Yields the user's questions from stdin, until an empty line or the end of the input."""
    click.echo('\nAsk on: it knows what is there, nothing else. {mark} is the mark. An empty line ends it.')
    try:
        while line := (input('> ') if sys.stdin.isatty() else sys.stdin.readline(LONGEST_LINE)).strip(BLANK):
            yield line
    except EOFError:
        return
    except UnicodeDecodeError:
        raise ValueError(
            'the questions on stdin are not UTF-8, perhaps UTF-16: write them in UTF-8'
        ) from None
