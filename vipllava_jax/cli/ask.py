"""`vipllava ask`: answers a question about pictures with marks, and streams the answer."""

import contextlib
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vipllava_jax.cli.answer_reports import report_answers, reported_settings
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
from vipllava_jax.cli.stdin import read_text
from vipllava_jax.cli.waiting import spinner
from vipllava_jax.messages import safe_answer, safe_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.answering.replies import Reply
    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.inputs.batch import Batch
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Source
    from vipllava_jax.weight_options import WeightOptions


GROUPS = {
    'Question': ('source', 'images', 'marks', 'template', 'fit'),
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
    as_json: bool,
    save_image: str | None,
    mesh: Any,
    **options: Any,
) -> None:
    """Ask QUESTION about pictures with marks drawn on them; without QUESTION it is read from stdin.

    {mark} (or {mark1}, {mark2}, …) in QUESTION is replaced by a mark's phrase, "within the red rectangle".
    The answer is streamed to stdout; nothing else is written there. With --n, each answer follows a line
    such as "--- answer 1 of 3 ---".

    \b
    Examples:
      vipllava ask --image photo.jpg --mark rectangle:40,60,180,220:red "What is {mark}?"
      vipllava ask --image a.jpg --image b.jpg --mark 2/arrow:0.2,0.3,0.5,0.8 "Compare them: {mark}."
      echo "Describe this." | vipllava ask --model ./vip-llava-7b --image photo.jpg --temperature 0.2 --seed 1
      curl -s https://example.com/photo.jpg | vipllava ask --image - "What is this?"
      vipllava ask --image photo.jpg --temperature 0.8 --n 3 --set typical_p=0.9 "Tell a story about this."
    """
    if mesh is not None:
        reserve()
    settings = {'seed': secrets.randbits(32), **pop_settings(options, as_json)}
    pictures, prompt = compose(question, images, marks)
    if save_image:
        check_save_image(save_image, images)
    weights = pop_weight_options(options)
    request = prepare(source, prompt, pictures, template, fit, weights, settings, mesh)
    if save_image:
        adapter = [Path(weights.adapter)] if weights.adapter else []
        save_picture(pictures[0], save_image, [*images, request.weights.folder, *adapter])
    answers, times = answer_request(request, quiet=as_json)
    if as_json:
        inputs = {'model': source, 'adapter': weights.adapter, 'template': template, 'prompt': prompt}
        inputs |= {**weight_dtypes(request.shapes), **reported_settings(settings)}
        click.echo(safe_json({**answers, **inputs, **times}))
    notes(pictures, settings)


def notes(pictures: 'Sequence[Image]', settings: dict[str, Any]) -> None:
    """Says on stderr what may not be as expected."""
    if not pictures:
        click.echo('vipllava: without --image, the model answered from the question alone', err=True)
    if idle := idle_settings(settings):
        click.echo(f'vipllava: without --temperature, there is no effect of {", ".join(idle)}', err=True)


def compose(question: str | None, images: Sequence[str], marks: Sequence[str]) -> 'tuple[list[Image], str]':
    """The pictures with the marks drawn on them, and the question with the phrases of the marks."""
    from vipllava_jax.answering.prompts import insert_phrases

    if question is None and STDIN in images:
        raise ValueError(f'--image {STDIN} reads a picture from stdin: give the question as an argument')
    pictures, drawn = mark_pictures(images, marks)
    return pictures, insert_phrases(read_question(question), drawn)


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
    return Request(processor, batch, weights, shapes, stopping)


def answer_request(request: Request, quiet: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the weights while the programs are compiled -> the reports of the answers and of the times."""
    from vipllava_jax.answering.replies import replies

    processor, batch, weights, shapes, settings = request
    wait = compile_in_background(shapes, batch, weights.cfg, settings, processor)
    model, seconds = load_model(weights, processor)
    several = replies(model, batch, settings)
    texts = []
    for number, reply in enumerate(several, 1):
        header = f'--- answer {number} of {len(several)} ---\n' if len(several) > 1 else ''
        texts.append(stream_answer(reply, wait, quiet, header))
    answers, times = report_answers(several, texts)
    return answers, {'load_seconds': seconds, **times}


def stream_answer(reply: 'Reply', wait: Callable[[], None], quiet: bool, header: str = '') -> str:
    """The complete answer; unless `quiet`, it is streamed to stdout. Waits for the compilation first."""
    answer = ''

    def write(text: str) -> None:
        if not quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    with spinner('looking at the picture; the first time, compiling …') as stop:
        with contextlib.suppress(Exception):  # decoding raises the same error again
            wait()
        for piece in reply:
            if piece and not answer:
                stop()
                write(header)
            answer += piece
            write(safe_answer(piece))
    write('\n' if answer else f'{header}\n')
    return answer
