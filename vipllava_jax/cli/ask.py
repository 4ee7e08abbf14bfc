"""`vipllava ask`: answers a question about pictures with marks, and streams the answer."""

import contextlib
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

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
from vipllava_jax.cli.numbers import RealNumber, WholeNumber
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


@click.command()
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
    '--max-new-tokens',
    metavar='N',
    type=WholeNumber(1),
    help='The maximum number of tokens of the answer.  [default: 512, or what the context '
    'leaves if that is less]',
)
@click.option(
    '--temperature',
    metavar='T',
    type=RealNumber(0),
    default=0.0,
    show_default=True,
    help='Sample tokens at this temperature; 0 selects the most likely token at each step.',
)
@click.option(
    '--top-p',
    metavar='P',
    type=RealNumber(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help='Sample only from the most likely tokens whose probabilities add up to this; 1 for all.',
)
@click.option(
    '--top-k',
    metavar='K',
    type=WholeNumber(0),
    default=0,
    show_default=True,
    help='Sample only from the k most likely tokens; 0 for all.',
)
@click.option(
    '--seed',
    metavar='N',
    type=WholeNumber(0, 2**32 - 1),
    help='The random seed of sampling, for repeatable answers.  [default: random]',
)
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
    The answer is streamed to stdout; nothing else is written there.

    \b
    Examples:
      vipllava ask --image photo.jpg --mark rectangle:40,60,180,220:red "What is {mark}?"
      vipllava ask --image a.jpg --image b.jpg --mark 2/arrow:0.2,0.3,0.5,0.8 "Compare them: {mark}."
      echo "Describe this." | vipllava ask --model ./vip-llava-7b --image photo.jpg --temperature 0.2 --seed 1
      curl -s https://example.com/photo.jpg | vipllava ask --image - "What is this?"
    """
    if mesh is not None:
        reserve()
    pictures, prompt = compose(question, images, marks)
    if save_image:
        check_save_image(save_image, images)
    weights = pop_weight_options(options)
    if options['seed'] is None:
        options['seed'] = secrets.randbits(32)
    request = prepare(source, prompt, pictures, template, fit, weights, options, mesh)
    if save_image:
        adapter = [Path(weights.adapter)] if weights.adapter else []
        save_picture(pictures[0], save_image, [*images, request.weights.folder, *adapter])
    answer, report = answer_request(request, quiet=as_json)
    inputs = {'model': source, 'adapter': weights.adapter, 'template': template, 'prompt': prompt}
    report = {'answer': answer, **inputs, **weight_dtypes(request.shapes), **options, **report}
    click.echo(safe_json(report) if as_json else '')
    if not pictures:
        click.echo('vipllava: without --image, the model answered from the question alone', err=True)


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
    from vipllava_jax.generation.plan import max_new_tokens_for
    from vipllava_jax.generation.settings import GenerationSettings

    with single_prompt():
        max_new_tokens_for(batch, weights.cfg, settings['max_new_tokens'])
    stopping = with_template_stops(GenerationSettings(**settings), processor, template)
    return Request(processor, batch, weights, weights.shapes(), stopping)


def answer_request(request: Request, quiet: bool) -> tuple[str, dict[str, Any]]:
    """Loads the weights while the programs are compiled -> the answer and a report with the times."""
    from vipllava_jax.answering.replies import replies

    processor, batch, weights, shapes, settings = request
    wait = compile_in_background(shapes, batch, weights.cfg, settings, processor)
    model, seconds = load_model(weights, processor)
    (reply,) = replies(model, batch, settings)
    answer = stream_answer(reply, wait, quiet)
    return answer, {'load_seconds': seconds, **reply.report()}


def stream_answer(reply: 'Reply', wait: Callable[[], None], quiet: bool) -> str:
    """The complete answer; unless `quiet`, it is streamed to stdout. Waits for the compilation first."""
    answer = ''
    with spinner('looking at the picture; the first time, compiling …') as stop:
        with contextlib.suppress(Exception):  # decoding raises the same error again
            wait()
        for piece in reply:
            if piece:
                stop()
            answer += piece
            if not quiet:
                sys.stdout.write(safe_answer(piece))
                sys.stdout.flush()
    return answer
