"""Reads the regions of `vipllava regions`, checks the questions about them, and answers them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vipllava_jax.cli.engines import LoadedOnce
from vipllava_jax.cli.models import compile_in_background, open_model
from vipllava_jax.cli.paths import STDIN
from vipllava_jax.cli.rows import report_broken_rows
from vipllava_jax.cli.stdin import read_picture
from vipllava_jax.cli.waiting import count_bar
from vipllava_jax.messages import brief, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.answering.regions import RegionAnswer, RegionQuestions
    from vipllava_jax.data.coco import AnnotatedPicture
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.inputs.marks import Mark
    from vipllava_jax.loading import Source
    from vipllava_jax.weight_options import WeightOptions


class RegionsOfPicture(NamedTuple):
    """A picture, its regions in the order of the file, without the broken ones, and their marks."""

    picture: 'Image'
    name: str  # of the picture's file
    marks: 'list[Mark]'
    indices: list[int]  # of the regions among those of the picture in the file, broken ones included
    annotations: list[dict[str, Any]] | None  # of the regions, if the file is in COCO's format
    source: 'AnnotatedPicture | None'  # what that file says of the picture


def read_inputs(
    image: str,
    coco: str | None,
    boxes: str | None,
    image_id: str | None,
    categories: Sequence[str],
    shape: str,
    skip_broken: bool,
) -> RegionsOfPicture:
    """The picture and its regions; ValueError for files of another form, and lists the broken regions."""
    from vipllava_jax.data.coco import read_annotations
    from vipllava_jax.data.region_files import PlacedRegion, read_regions
    from vipllava_jax.inputs.images import open_image

    if (coco is None) == (boxes is None):
        raise ValueError('give the regions with either --coco FILE or --boxes FILE')
    if coco is None and (image_id is not None or categories):
        raise ValueError(f'{"--image-id" if image_id is not None else "--category"} needs --coco')
    source = None
    if coco is not None:
        source = read_annotations(Path(coco), image, image_id, categories)
        regions = [
            PlacedRegion(f'{coco}, annotation {entry.get("id", n)}', entry)
            for n, entry in enumerate(source.annotations)
        ]
    else:
        regions = read_regions(Path(str(boxes)))
    picture = read_picture() if image == STDIN else open_image(image)
    if source:
        check_size(source.image or {}, picture.size, str(coco), image)
    marks, indices = find_marks(regions, shape, picture.size, skip_broken)
    annotations = [source.annotations[n] for n in indices] if source else None
    return RegionsOfPicture(picture, Path(image).name, marks, indices, annotations, source)


def check_size(entry: dict[str, Any], size: tuple[int, int], coco: str, image: str) -> None:
    """Raises ValueError if a file states another size of the picture."""
    stated = entry.get('width') or size[0], entry.get('height') or size[1]
    if stated != size:
        turned = ' (turned upright if its EXIF data says so)' if stated == size[::-1] else ''
        raise ValueError(
            f'{coco}: the picture has {"x".join(map(brief, stated))} pixels there, but {image} has '
            f'{size[0]}x{size[1]}{turned}: give the picture that was annotated, or another --image-id'
        )


def find_marks(
    regions: Sequence[Any], shape: str, size: tuple[int, int], skip_broken: bool
) -> 'tuple[list[Mark], list[int]]':
    """The marks of regions in a file, and the indices of those regions; the broken ones are reported."""
    from vipllava_jax.answering.region_marks import region_mark
    from vipllava_jax.data.row_checks import raise_unless_skipped
    from vipllava_jax.inputs.marks import MAX_MARKS

    if len(regions) > MAX_MARKS:
        raise ValueError(f'there are {len(regions)} regions, expected at most {MAX_MARKS}: split the file')
    marks, indices, errors = [], [], []
    for n, region in enumerate(regions):
        try:
            marks.append(region_mark(region.value, shape, size))
            indices.append(n)
        except ValueError as error:
            errors.append(printable(f'{region.where}: {error}'))
    with report_broken_rows():
        skipped = raise_unless_skipped(errors, len(regions), skip_broken, 'regions')
    for line in skipped:
        click.echo(printable(f'vipllava: left out: {line}'), err=True)
    if len(errors) > len(skipped):
        click.echo(f'vipllava: {len(errors)} regions were left out in total', err=True)
    return marks, indices


class Request(NamedTuple):
    """Questions that are ready to be answered: everything but the weights."""

    inputs: RegionsOfPicture
    questions: 'RegionQuestions'
    weights: 'Source'
    shapes: dict[str, Any]  # the shapes of the weights
    settings: 'GenerationSettings'
    model: dict[str, str]  # its name, and that of an adapter, as reported with the answers


def prepare(
    source: str,
    question: str,
    inputs: RegionsOfPicture,
    options: 'WeightOptions',
    settings: dict[str, Any],
    mesh: Any,
    how: dict[str, Any],
) -> Request:
    """Locates the checkpoint, and checks everything that can be checked without reading the weights."""
    weights, processor = open_model(source, options, mesh)
    from vipllava_jax.answering.regions import RegionQuestions
    from vipllava_jax.answering.replies import with_template_stops
    from vipllava_jax.generation.settings import GenerationSettings

    questions = RegionQuestions.of(processor, question, inputs.picture, inputs.marks, **how)
    stopping = with_template_stops(GenerationSettings(**settings), processor, how['template'])
    shapes = weights.shapes()
    questions.check(shapes, weights.cfg, stopping)
    model = {'model': source, **({'adapter': str(options.adapter)} if options.adapter else {})}
    return Request(inputs, questions, weights, shapes, stopping, model)


def answer(
    request: Request, answered: set[int], shown: bool, engine: bool | None
) -> 'Iterator[list[RegionAnswer]]':
    """Loads the weights, and yields the answers that are missing, several at a time.

    `answered` are the regions that have one; `shown` says whether a bar shows the progress, and `engine` what
    answers, as --engine.
    """
    missing = [n for n in range(len(request.questions.marks)) if n not in answered]
    if not missing:
        return
    done, total = len(answered), len(request.questions.marks)
    model = LoadedOnce(request.weights, request.questions.processor)
    with model.engine(choice_of(engine, request), len(missing)) or contextlib.nullcontext() as opened:
        steps = through(opened, request, missing) if opened else in_batches(model, request, answered)
        with count_bar('answers') if shown else contextlib.nullcontext(lambda done, total: None) as progress:
            for answers in steps:
                if answers:
                    yield answers
                done += len(answers)
                progress(done, total)


def check_engine(request: Request) -> None:
    """Raises ValueError if an engine would not answer as batches do."""
    from vipllava_jax.asking.regions import check_settings, region_questions
    from vipllava_jax.engine.question import encode
    from vipllava_jax.generation.model import Model

    check_settings(request.settings, request.questions.together)
    model = Model(request.shapes, request.weights.cfg, request.questions.processor)
    for _, question in region_questions(
        request.questions, request.settings, [0] if request.inputs.marks else []
    ):
        encode(question, model)


def choice_of(engine: bool | None, request: Request) -> bool | None:
    """Whether an engine answers; None: it may, because its answers are those of batches."""
    from vipllava_jax.asking.regions import are_certain

    is_certain = not request.questions.together and are_certain(
        request.settings, len(request.questions.marks)
    )
    return engine if engine is not None or is_certain else False


def through(engine: 'Engine', request: Request, missing: Sequence[int]) -> 'Iterator[list[RegionAnswer]]':
    """The missing answers from an engine, after an empty list."""
    from vipllava_jax.asking.regions import ask_about_regions

    yield []
    yield from ask_about_regions(engine, request.questions, request.settings, missing)


def in_batches(model: LoadedOnce, request: Request, answered: set[int]) -> 'Iterator[list[RegionAnswer]]':
    """The missing answers of one group after another, after an empty list when the weights are loaded."""
    from vipllava_jax.answering.regions import answer_regions

    questions, settings = request.questions, request.settings
    groups = [group for group in questions.groups if not answered.issuperset(group)]

    def compile() -> Callable[[], None]:
        rows = questions.rows(groups[0])
        batch, of_rows = questions.blank(rows), questions.settings(settings, rows)
        sharing = batch if questions.together else None
        given = request.shapes, batch, request.weights.cfg, of_rows, questions.processor
        return compile_in_background(*given, sharing)

    loaded = model.model(compile)
    yield []
    for answers in answer_regions(loaded, questions, settings, groups):
        yield [found for found in answers if found.index not in answered]
