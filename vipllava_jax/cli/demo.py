"""`vipllava demo`: asks the bundled model questions about a marked picture of its small world."""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import click
from click.core import ParameterSource

from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FILE, STDIN
from vipllava_jax.cli.pictures import mark_option, mark_pictures, save_picture
from vipllava_jax.cli.waiting import spinner
from vipllava_jax.files import check_output
from vipllava_jax.messages import listed, safe_answer

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.demo.questions import Question, View
    from vipllava_jax.generation.model import Model
    from vipllava_jax.inputs.marks import Mark

BLANK = ' \t\r\n\ufeff'  # stripped from lines on stdin, of which the first may begin with a byte order mark
MAX_LINE = 1 << 16  # characters of a question on stdin
MAX_NEW_TOKENS = 64  # the maximum per answer
ROWS = 5  # questions per batch; fewer are padded, so that only one shape is compiled
TYPES = ('kind', 'describe', 'position', 'neighbour', 'alike')  # the types of the default questions
# Wordings that the model knows, but that are not natural English.
CLUMSY = ('What is next ', 'What is with ', 'What do you see as ', 'kind of thing is the thing ', 'are like ')


class Scenario(NamedTuple):
    """A picture with marks, and questions about it with their right answers if they are known."""

    picture: 'Image'
    marks: 'list[Mark]'
    questions: list[tuple[str, str | None]]


@click.command()
@click.argument('questions', nargs=-1)
@click.option(
    '--seed', metavar='N', type=WholeNumber(0), help='The random seed of the picture.  [default: random]'
)
@click.option('--image', metavar='FILE', type=FILE, help='Ask about this picture; - reads it from stdin.')
@mark_option
@click.option(
    '--output',
    metavar='FILE',
    type=FILE,
    default='demo.png',
    show_default=True,
    help='Save the picture with its marks to this file.',
)
@click.option('--chat', is_flag=True, help='Afterwards, read more questions from stdin, one per line.')
@click.option('--page', is_flag=True, help='Draw marks and ask in the browser, until Ctrl-C.')
def demo(
    questions: tuple[str, ...],
    seed: int | None,
    image: str | None,
    marks: tuple[str, ...],
    output: str,
    chat: bool,
    page: bool,
) -> None:
    """Watch a small bundled model answer questions about marked pictures of a world of simple shapes.

    The demo draws a picture of coloured shapes, marks one of them, asks questions, and prints the model's
    answers next to the right ones. Nothing is downloaded. If QUESTIONS are given, they are asked instead;
    {mark} in them is replaced by the mark's phrase. Other commands use the same model with `--model demo`.

    \b
    Examples:
      vipllava demo
      vipllava demo --page
      vipllava demo --seed 7 "What is left of the object {mark}?" --chat
      vipllava demo --image demo.png --mark arrow:120,80,180,140:blue --output marked.png "What is {mark}?"
    """
    if page:
        open_page()
        return
    check_options(questions, image, marks, chat)
    from vipllava_jax.answering.prompts import insert_phrases
    from vipllava_jax.loading import DEMO, load, locate

    check_output(Path(output), [locate(DEMO), *([Path(image)] if image not in (None, STDIN) else [])])
    if image is not None:
        scenario = users_scenario(image, marks)
    else:
        scenario = random_scenario(secrets.randbits(31) if seed is None else seed)
    if questions:
        prompts = [insert_phrases(question, scenario.marks) for question in questions]
        scenario = scenario._replace(questions=[(prompt, None) for prompt in prompts])
    save_picture(scenario.picture, output)
    with spinner('loading; the first time, compiling …'):
        model = load(DEMO, dtype='float32', progress=False)  # every CPU multiplies float32 natively
        answers = answer_questions(model, scenario.picture, [prompt for prompt, _ in scenario.questions])
    print_answers(scenario, answers, output)
    if chat:
        for question in _lines():
            click.echo('  ' + safe_answer(_answer_line(model, scenario, question)))


def open_page() -> None:
    """Serves the demo model and its page; raises ValueError for arguments that only the terminal has."""
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in context.params if name != 'page'}
    if given := [name for name, source in sources.items() if source == ParameterSource.COMMANDLINE]:
        raise ValueError(f'--page begins with a picture of its own: leave out {listed(given, 9)}')
    from vipllava_jax.cli.demo_page import serve_page

    serve_page()


def check_options(questions: tuple[str, ...], image: str | None, marks: tuple[str, ...], chat: bool) -> None:
    if not all(map(str.strip, questions)):
        raise ValueError('a question is empty: leave it out, or ask something')
    if image is None and marks:
        raise ValueError('--mark needs an --image: without one, the demo draws a picture and marks it')
    if image == STDIN and chat:
        raise ValueError(f'--image {STDIN} and --chat both read stdin: give the path of the picture')


def random_scenario(seed: int) -> Scenario:
    """A random picture with one mark, and questions about it."""
    from vipllava_jax.demo.drawing import picture
    from vipllava_jax.demo.marking import draw_marks, make_marks
    from vipllava_jax.demo.questions import View
    from vipllava_jax.demo.world import make_scene

    rng = Random(seed)
    scene = make_scene(rng)
    marks = make_marks(rng, scene, 1)
    view = View(scene, marks)
    questions = [question for type in TYPES if (question := _natural_question(rng, view, type))]
    return Scenario(
        draw_marks(picture(scene), marks, None),
        [marked.mark for marked in marks],
        [(question.text, question.answer) for question in questions],
    )


def _natural_question(rng: Random, view: 'View', type: str) -> 'Question | None':
    """A question of a type in natural wording, if there is one for this view."""
    from vipllava_jax.demo.question_types import choose_questions

    tries = (question for _ in range(20) for question in choose_questions(rng, view, 1, [type]))
    return next((question for question in tries if not any(words in question.text for words in CLUMSY)), None)


def users_scenario(image: str, specs: tuple[str, ...]) -> Scenario:
    """The user's picture and marks, and a question that fits any picture."""
    (picture,), marks = mark_pictures([image], specs)
    question = f'What is {marks[0].phrase}?' if marks else 'How many objects are there?'
    return Scenario(picture, marks, [(question, None)])


def answer_questions(model: 'Model', picture: 'Image', questions: list[str]) -> list[str]:
    """The model's answers to questions about the picture; each question is a separate conversation."""
    from vipllava_jax.answering.replies import replies
    from vipllava_jax.generation.settings import GenerationSettings

    answers: list[str] = []
    for group in (questions[n : n + ROWS] for n in range(0, len(questions), ROWS)):
        batch = model.processor([group[n % len(group)] for n in range(ROWS)], [[picture]] * ROWS)
        rows = replies(model, batch, GenerationSettings(max_new_tokens=MAX_NEW_TOKENS))
        answers += [row.text() for row in rows[: len(group)]]
    return answers


def print_answers(scenario: Scenario, answers: list[str], output: str) -> None:
    click.echo(f'{output}: a picture with {_list_marks(scenario.marks)}')
    for (question, right), answer in zip(scenario.questions, answers, strict=True):
        verdict = '' if right is None else '  (right)' if answer == right else f'  (wrong; right: {right})'
        click.echo(f'\n{question}\n  {safe_answer(answer)}{verdict}')


def _answer_line(model: 'Model', scenario: Scenario, question: str) -> str:
    """The answer, or the error of the question."""
    from vipllava_jax.answering.prompts import insert_phrases

    try:
        prompt = insert_phrases(question, scenario.marks)
        return answer_questions(model, scenario.picture, [prompt])[0]
    except ValueError as error:
        return f'vipllava: {error}'


def _list_marks(marks: 'list[Mark]') -> str:
    """'a red rectangle, an arrow'."""
    article = {'ellipse': 'an', 'arrow': 'an', 'orange': 'an', 'aqua': 'an'}
    names = [f'{mark.color} {mark.shape}' if isinstance(mark.color, str) else mark.shape for mark in marks]
    return ', '.join(f'{article.get(name.split()[0], "a")} {name}' for name in names) or 'no mark'


def _lines() -> Iterator[str]:
    """Yields the user's questions from stdin, until an empty line or the end of the input."""
    click.echo(
        '\nAsk more questions: the model knows nothing but its small world. {mark} is replaced by the phrase '
        'of the mark. An empty line ends the chat.'
    )
    try:
        while line := (input('> ') if sys.stdin.isatty() else sys.stdin.readline(MAX_LINE)).strip(BLANK):
            yield line
    except EOFError:
        return
    except UnicodeDecodeError:
        raise ValueError(
            'the questions on stdin are not UTF-8, perhaps UTF-16: write them in UTF-8'
        ) from None
