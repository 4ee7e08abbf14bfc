"""Prepares an evaluation: checks everything before the weights are loaded."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vipllava_jax.cli.engines import LoadedOnce
from vipllava_jax.cli.eval_parts import Division
from vipllava_jax.cli.eval_settings import describe_model
from vipllava_jax.cli.models import compile_in_background, weight_dtypes
from vipllava_jax.cli.rows import report_broken_rows
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.evaluation.batches import CaseBatch, CaseBatches
    from vipllava_jax.evaluation.cases import Cases
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Source
    from vipllava_jax.model.vipllava import Params
    from vipllava_jax.weight_options import WeightOptions


class PreparedEvaluation(NamedTuple):
    """An evaluation that is ready to run: everything but the weights."""

    processor: 'Processor'
    weights: 'Source'
    shapes: dict[str, Any]  # the shapes of the weights
    batches: 'CaseBatches'  # of this process
    group: 'Callable[[], CaseBatches]'  # makes those of all processes
    settings: Callable[[bool], dict[str, Any]]  # for the file of answers, portable or not


def prepare(
    source: str,
    cases: 'Cases',
    outputs: dict[str, Path],
    weight_options: 'WeightOptions',
    mesh: Any,
    division: Division,
    options: dict[str, Any],
) -> PreparedEvaluation:
    """Locates the checkpoint, and checks everything that can be checked without reading the weights."""
    from vipllava_jax import loading
    from vipllava_jax.evaluation.batches import group_cases
    from vipllava_jax.evaluation.outputs import check_outputs
    from vipllava_jax.evaluation.run import answer_settings
    from vipllava_jax.inputs.processor import Processor

    folder = loading.locate(source)
    adapter = weight_options.adapter
    check_outputs(outputs, (), [folder, *([Path(adapter)] if adapter else [])])
    processor = Processor.load(folder)
    weights = loading.open(folder, weight_options, mesh)
    shapes = weights.shapes()
    group = partial(group_cases, cases, processor, weights.cfg, **options, warn=OncePerSubject())
    with report_broken_rows():
        batches = group(shard=division.shard)

    def settings(portable: bool) -> dict[str, Any]:
        asked = {name: options[name] for name in ('template', 'fit', 'max_new_tokens', 'choose')}
        described = describe_model(source, folder, str(adapter) if adapter else None, portable)
        return {**described, **weight_dtypes(shapes), **answer_settings(cases, **asked, portable=portable)}

    return PreparedEvaluation(processor, weights, shapes, batches, group, settings)


def load_params(plan: PreparedEvaluation, model: LoadedOnce, first: 'CaseBatch') -> 'Params':
    """The weights, loaded while the programs for the first batch are compiled."""

    def compile() -> Callable[[], None] | None:
        batch = plan.batches.prepare(first).batch
        if batch is None:
            return None
        given = plan.shapes, batch, plan.batches.cfg, plan.batches.settings(first.max_new_tokens)
        sharing = batch if first.one_picture else None
        return compile_in_background(*given, plan.processor, sharing=sharing)

    return model.model(compile).params


class OncePerSubject:
    """Shows messages on stderr, one for each subject."""

    def __init__(self) -> None:
        self.subjects: set[str] = set()

    def __call__(self, subject: str, message: str) -> None:
        if subject not in self.subjects:
            self.subjects.add(subject)
            click.echo(f'vipllava: {printable(message)}', err=True)
