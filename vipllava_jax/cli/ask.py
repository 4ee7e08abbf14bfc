"""`vipllava ask`: answers a question about pictures with marks, and streams the answer."""

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vipllava_jax.cli.answer_reports import report_answers, reported_settings
from vipllava_jax.cli.ask_questions import ListRequest, prepare_list
from vipllava_jax.cli.generation_options import (
    OPTIONS,
    GenerationCommand,
    generation_options,
    idle_settings,
    pop_settings,
)
from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.mesh import mesh_option
from vipllava_jax.cli.models import (
    compile_in_background,
    fit_option,
    load_model,
    model_option,
    pop_weight_options,
    template_option,
    weight_dtypes,
    weight_options,
)
from vipllava_jax.cli.paths import FILE, STDIN
from vipllava_jax.cli.pictures import check_picture_output, mark_option, mark_pictures, save_picture
from vipllava_jax.cli.question_file import read_questions
from vipllava_jax.cli.stdin import read_text
from vipllava_jax.cli.streaming import stream_answers
from vipllava_jax.messages import brief, safe_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.inputs.batch import Batch
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Source
    from vipllava_jax.weight_options import WeightOptions


GROUPS = {
    'Question': ('source', 'images', 'marks', 'question_file', 'template', 'fit'),
    'Generation': (*OPTIONS, 'others'),
    'Weights': ('dtype', 'quantize', 'adapter', 'mesh'),
    'Output': ('as_json', 'save_image'),
}


@click.command(cls=GenerationCommand, groups=GROUPS)
@click.argument('question', required=False)
@model_option
@click.option(
    '--image',
    'images',
    metavar='FILE',
    multiple=True,
    type=FILE,
    help='A picture; - reads it from stdin. May be repeated.',
)
@mark_option
@template_option
@fit_option("as in the checkpoint's files")
@click.option(
    '--questions',
    'question_file',
    metavar='FILE',
    type=FILE,
    help='Ask each line of this file about the same pictures instead of QUESTION; - reads stdin.',
)
@generation_options
@weight_options
@mesh_option
@click.option(
    '--json', 'as_json', is_flag=True, help='Print one JSON object, with times and settings, instead of text.'
)
@click.option(
    '--save-image', metavar='FILE', type=FILE, help='Save the first picture, with its marks, to this file.'
)
def ask(
    question: str | None,
    source: str,
    images: tuple[str, ...],
    marks: tuple[str, ...],
    template: str,
    fit: Any,
    question_file: str | None,
    as_json: bool,
    save_image: str | None,
    mesh: Any,
    **options: Any,
) -> None:
    """Ask QUESTION about pictures with marks drawn on them; without QUESTION it is read from stdin.

    {mark} (or {mark1}, {mark2}, …) in QUESTION is replaced by a mark's phrase, "within the red rectangle".
    The answer is streamed to stdout; nothing else is written there. With --n, each answer follows a line
    such as "--- answer 1 of 3 ---". With --questions, each answer follows a line with its question.

    \b
    Examples:
      vipllava ask --image photo.jpg --mark rectangle:40,60,180,220:red "What is {mark}?"
      vipllava ask --image a.jpg --image b.jpg --mark 2/arrow:0.2,0.3,0.5,0.8 "Compare them: {mark}."
      echo "Describe this." | vipllava ask --model ./vip-llava-7b --image photo.jpg --temperature 0.2 --seed 1
      curl -s https://example.com/photo.jpg | vipllava ask --image - "What is this?"
      vipllava ask --image photo.jpg --mark ellipse:0.2,0.3,0.5,0.8:lime --questions questions.txt --json
      vipllava ask --image photo.jpg --temperature 0.8 --n 3 --set typical_p=0.9 "Tell a story about this."
    """
    if mesh is not None:
        reserve()
    from vipllava_jax.answering.prompts import insert_phrases

    settings = {'seed': secrets.randbits(32), **pop_settings(options, as_json)}
    check_sources(question, question_file, images)
    pictures, drawn = mark_pictures(images, marks)
    if save_image:
        check_save_image(save_image, images)
    weights = pop_weight_options(options)
    asked = (pictures, template, fit, weights, settings, mesh)
    request: Request | ListRequest
    if question_file is None:
        request = prepare(source, insert_phrases(read_question(question), drawn), *asked)
    else:
        request = prepare_list(source, read_questions(question_file, drawn), *asked)
    if save_image:
        others = [Path(path) for path in (weights.adapter, question_file) if path and path != STDIN]
        save_picture(pictures[0], save_image, [*images, request.weights.folder, *others])
    about = {'model': source, 'adapter': weights.adapter, 'template': template}
    about |= {**weight_dtypes(request.shapes), **reported_settings(settings)}
    request.answer(about if as_json else None)
    notes(pictures, settings)


def notes(pictures: 'Sequence[Image]', settings: dict[str, Any]) -> None:
    """Says on stderr what may not be as expected."""
    if not pictures:
        click.echo('vipllava: without --image, the model answered from the question alone', err=True)
    if idle := idle_settings(settings):
        click.echo(f'vipllava: without --temperature, there is no effect of {", ".join(idle)}', err=True)


def check_sources(question: str | None, question_file: str | None, images: Sequence[str]) -> None:
    """Raises ValueError if there are two sources of questions, or stdin is read twice."""
    if question is not None and question_file is not None:
        raise ValueError(f'QUESTION and --questions are both given: leave out {brief(question)}')
    if STDIN not in images:
        return
    if question_file == STDIN:
        raise ValueError(f'--image {STDIN} and --questions {STDIN} both read stdin: give the path of one')
    if question is None and question_file is None:
        raise ValueError(f'--image {STDIN} reads a picture from stdin: give the question as an argument')


def read_question(question: str | None) -> str:
    """The question, or the text on stdin if there is none; ValueError if it is empty or not UTF-8."""
    if question is None and sys.stdin.isatty():
        click.echo('Question, then Ctrl-D:', err=True)
    text = (read_text() if question is None else question).strip()
    if not text:
        raise ValueError('the question is empty: give it as the last argument or on stdin')
    return text


def check_save_image(path: str, images: Sequence[str]) -> None:
    if not images:
        raise ValueError('--save-image needs an --image')
    check_picture_output(path, images)


class Request(NamedTuple):
    """A question that is ready to be answered: everything but the weights."""

    processor: 'Processor'
    batch: 'Batch'
    weights: 'Source'
    shapes: dict[str, Any]  # the shapes of the weights
    settings: 'GenerationSettings'
    prompt: str

    def answer(self, about: dict[str, Any] | None) -> None:
        """Loads the weights while the programs are compiled, and prints the answers.

        They are streamed or, if there is a description of the model and the settings, printed as JSON.
        """
        from vipllava_jax.answering.replies import replies

        processor, batch, weights, shapes, settings, prompt = self
        wait = compile_in_background(shapes, batch, weights.cfg, settings, processor)
        model, seconds = load_model(weights, processor)
        several = replies(model, batch, settings)
        texts = stream_answers(several, about is not None, wait)
        if about is not None:
            answers, numbers = report_answers(several, texts)
            click.echo(safe_json({**answers, 'prompt': prompt, **about, 'load_seconds': seconds, **numbers}))


def prepare(
    source: str,
    prompt: str,
    pictures: 'list[Image]',
    template: str,
    fit: Any,
    options: 'WeightOptions',
    settings: dict[str, Any],
    mesh: Any = None,
) -> Request:
    """Locates the checkpoint, and checks everything that can be checked without reading the weights.

    Raises ValueError if there is no room for an answer, or the processor does not fit the weights.
    """
    from vipllava_jax import loading
    from vipllava_jax.answering.prompts import single_prompt
    from vipllava_jax.inputs.processor import Processor

    folder = loading.locate(source)
    processor = Processor.load(folder)
    with single_prompt():
        batch = processor(prompt, pictures, template=template, fit=fit)
    weights = loading.open(folder, options, mesh)
    processor.for_model(weights.cfg).check_ids(batch.tokens[0, : batch.lengths[0]].tolist())
    from vipllava_jax.answering.replies import with_template_stops
    from vipllava_jax.generation.plan import make_plan
    from vipllava_jax.generation.settings import GenerationSettings

    stopping = with_template_stops(GenerationSettings(**settings), processor, template)
    shapes = weights.shapes()
    with single_prompt():
        make_plan(shapes, batch, weights.cfg, stopping, processor)
    return Request(processor, batch, weights, shapes, stopping, prompt)
