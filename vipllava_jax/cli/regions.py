"""`vipllava regions`: asks one question about each of many regions of a picture."""

import secrets
import sys
from functools import partial
from typing import Any

import click

from vipllava_jax.cli.engine_option import engine_option, reserve_for_engine
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
    fit_option,
    model_option,
    pop_weight_options,
    template_option,
    weight_options,
)
from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FILE, STDIN
from vipllava_jax.cli.region_outputs import KINDS, open_lines, output_kind, record, write_coco, write_picture
from vipllava_jax.cli.region_plan import answer, check_engine, prepare, read_inputs
from vipllava_jax.messages import printable

SHAPES = ('rectangle', 'ellipse', 'triangle', 'point', 'scribble', 'mask', 'mask-contour', 'arrow')
QUESTION = 'What is {mark}?'
WITHOUT = ('num_return_sequences',)  # there is one answer per region
GROUPS = {
    'Regions': ('coco', 'image_id', 'categories', 'boxes', 'shape', 'mode', 'skip_broken'),
    'Question': ('source', 'template', 'fit', 'batch', 'engine'),
    'Generation': (*(name for name in OPTIONS if name not in WITHOUT), 'others'),
    'Weights': ('dtype', 'quantize', 'adapter', 'mesh'),
    'Output': ('output', 'kind', 'resume'),
}


@click.command(cls=GenerationCommand, groups=GROUPS)
@click.argument('image', type=FILE)
@click.argument('question', default=QUESTION)
@click.option(
    '--coco',
    metavar='FILE',
    type=FILE,
    help="A file in COCO's format: an object with images and annotations, or a list of detections.",
)
@click.option(
    '--image-id',
    metavar='ID',
    help='The id of the picture in the file of --coco.  [default: that of the picture with the same file '
    'name, or of the only one]',
)
@click.option(
    '--category',
    'categories',
    metavar='NAME',
    multiple=True,
    help='Only annotations of this category. May be repeated.',
)
@click.option(
    '--boxes',
    metavar='FILE',
    type=FILE,
    help='A file with one region per line: x1,y1,x2,y2, a mark such as ellipse:40,60,180,220, or either of '
    'them in JSON; or a JSON list of these.',
)
@click.option(
    '--shape',
    type=click.Choice(SHAPES),
    default='rectangle',
    show_default=True,
    help='The shape of the marks, unless a mark has its own. Those other than rectangle, ellipse and arrow '
    'follow the outline of an annotation, polygons or a mask.',
)
@click.option(
    '--mode',
    type=click.Choice(('separate', 'together')),
    default='separate',
    show_default=True,
    help='separate marks one region on each copy of the picture; together marks up to nine at once, in '
    'different colours, which is faster.',
)
@click.option('--skip-broken', is_flag=True, help='Leave out broken regions instead of stopping.')
@model_option
@template_option
@fit_option("as in the checkpoint's files")
@click.option(
    '--batch',
    metavar='N',
    type=WholeNumber(1, 1024),
    default=16,
    show_default=True,
    help='The number of regions that are answered at a time, at most nine with --mode together, unless the '
    'engine answers.',
)
@engine_option('regions')
@partial(generation_options, without=WITHOUT)
@weight_options
@mesh_option
@click.option(
    '--output',
    metavar='FILE',
    type=FILE,
    help='Write the answers to this file.  [default: JSON lines on stdout]',
)
@click.option(
    '--format',
    'kind',
    type=click.Choice(KINDS),
    help='The format of the file: JSON lines, annotations with captions as in COCO, or a picture with '
    'numbered answers, which are printed as JSON lines, too.  [default: by suffix, .jsonl, .json or .png]',
)
@click.option(
    '--resume', is_flag=True, help='Keep the answers in a file of JSON lines, and add those that are missing.'
)
def regions(
    image: str,
    question: str,
    source: str,
    output: str | None,
    kind: str | None,
    resume: bool,
    template: str,
    fit: Any,
    mode: Any,
    batch: int,
    engine: bool | None,
    mesh: Any,
    **options: Any,
) -> None:
    """Ask QUESTION about each of many regions of the picture IMAGE (- reads it from stdin).

    {mark} in QUESTION, which is "What is {mark}?" by default, is replaced by the phrase of a region's mark,
    "within the red rectangle". Answers are printed as JSON lines in the order of the regions.

    \b
    Examples:
      vipllava regions photo.jpg --coco instances.json --output photo.json
      vipllava regions photo.jpg "What color is the object {mark}?" --boxes boxes.csv --mode together
      vipllava regions photo.jpg --coco instances.json --category dog --shape mask --output dogs.png
    """
    if mesh is not None:
        reserve()
    kind, settings = prepare_options(image, question, output, kind, resume, mode, options)
    names = ('coco', 'boxes', 'image_id', 'categories', 'shape', 'skip_broken')
    inputs = read_inputs(image, **{name: options.pop(name) for name in names})
    check_count(kind, len(inputs.marks))
    reserve_for_engine(engine, len(inputs.marks))
    weights = pop_weight_options(options)
    how = {'mode': mode, 'template': template, 'fit': fit, 'rows': batch}
    request = prepare(source, question, inputs, weights, settings, mesh, how)
    if engine:
        check_engine(request)
    if message := request.questions.cut_off:
        click.echo(printable(f'vipllava: {message}'), err=True)
    if idle := idle_settings(settings):
        click.echo(f'vipllava: without --temperature, there is no effect of {", ".join(idle)}', err=True)
    if kind == 'coco':
        groups = answer(request, set(), True, engine)
        write_coco(str(output), request, [found.text for answers in groups for found in answers])
        return
    lines = output if kind == 'jsonl' else None  # they are printed with a picture, which shortens answers
    texts: list[str] = []
    with open_lines(lines, request) as (write, answered):
        shown = lines is not None or not sys.stdout.isatty()
        for answers in answer(request, answered, shown, engine):
            write([record(found, request) for found in answers])
            texts += [found.text for found in answers]
    if kind == 'picture':
        write_picture(str(output), request, texts)


def prepare_options(
    image: str,
    question: str,
    output: str | None,
    kind: str | None,
    resume: bool,
    mode: str,
    options: dict[str, Any],
) -> tuple[str, dict[str, Any]]:
    """Checks the options that need no file -> the kind of the output, and the settings of generation."""
    from vipllava_jax.answering.region_marks import check_options

    options['shape'] = options['shape'].replace('-', ' ')
    read = [path for path in (image, options['coco'], options['boxes']) if path and path != STDIN]
    kind = output_kind(output, kind, resume, read)
    if options['logprobs'] is not None and kind == 'coco':
        raise ValueError('--logprobs needs JSON lines, which hold them: leave it out for annotations')
    settings = {'seed': secrets.randbits(32), **pop_settings(options, as_json=True)}
    check_options(question, mode, options['shape'])
    return kind, settings


def check_count(kind: str, count: int) -> None:
    """Raises ValueError if there are more regions than a picture can show."""
    from vipllava_jax.answering.captioned_picture import MAX_REGIONS

    if kind == 'picture' and count > MAX_REGIONS:
        raise ValueError(
            f'there are {count} regions, but a picture shows at most {MAX_REGIONS}: write .jsonl or .json'
        )
