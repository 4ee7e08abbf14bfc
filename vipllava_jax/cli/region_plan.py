"""Prepares the questions of `vipllava regions`, and answers them."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from vipllava_jax.cli.models import compile_in_background, load_model
from vipllava_jax.cli.region_inputs import RegionsOfPicture
from vipllava_jax.cli.waiting import count_bar

if TYPE_CHECKING:
    from vipllava_jax.answering.regions import RegionAnswer, RegionQuestions
    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.loading import Source
    from vipllava_jax.weight_options import WeightOptions


class Request(NamedTuple):
    """Questions that are ready to be answered: everything but the weights."""

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
    from vipllava_jax import loading
    from vipllava_jax.inputs.processor import Processor

    folder = loading.locate(source)
    processor = Processor.load(folder)
    weights = loading.open(folder, options, mesh)
    processor = processor.for_model(weights.cfg)
    from vipllava_jax.answering.regions import RegionQuestions
    from vipllava_jax.answering.replies import with_template_stops
    from vipllava_jax.generation.settings import GenerationSettings

    questions = RegionQuestions.of(processor, question, inputs.picture, inputs.marks, **how)
    stopping = with_template_stops(GenerationSettings(**settings), processor, how['template'])
    shapes = weights.shapes()
    questions.check(shapes, weights.cfg, stopping)
    model = {'model': source, **({'adapter': str(options.adapter)} if options.adapter else {})}
    return Request(questions, weights, shapes, stopping, model)


def answer(request: Request, answered: set[int], shown: bool) -> 'Iterator[list[RegionAnswer]]':
    """Loads the weights, and yields the answers that are missing, one group after another.

    `answered` are the regions that have one; `shown` says whether a bar shows the progress.
    """
    from vipllava_jax.answering.regions import answer_regions

    questions, weights, shapes, settings, _ = request
    groups = [group for group in questions.groups if not answered.issuperset(group)]
    if not groups:
        return
    wait = None
    if not questions.together:
        rows = questions.rows(groups[0])
        example = questions.blank(rows), weights.cfg, questions.settings(settings, rows)
        wait = compile_in_background(shapes, *example, questions.processor)
    model, _ = load_model(weights, questions.processor)
    done, total = len(answered), len(questions.marks)
    with count_bar('answers') if shown else contextlib.nullcontext(lambda done, total: None) as progress:
        progress(done, total)
        if wait:
            with contextlib.suppress(Exception):  # decoding raises the same error again
                wait()
        for answers in answer_regions(model, questions, settings, groups):
            new = [found for found in answers if found.index not in answered]
            yield new
            done += len(new)
            progress(done, total)
