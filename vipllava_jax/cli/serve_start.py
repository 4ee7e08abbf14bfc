"""Starts a server: checks its options, and loads its model while the socket already answers."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from vipllava_jax.cli.generation_options import pop_settings
from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.models import open_model, pop_weight_options
from vipllava_jax.cli.waiting import count_bar
from vipllava_jax.device_kinds import FRACTION
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.loading import Source
    from vipllava_jax.serving.options import ServerOptions
    from vipllava_jax.serving.state import Progress
    from vipllava_jax.weight_options import WeightOptions

ENGINE = ('rows', 'slots', 'queue', 'exact')


def run_server(
    source: str,
    name: str | None,
    mesh: Any,
    keys: tuple[str, ...],
    options: dict[str, Any],
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves a model with the options of the command, until a signal ends it.

    `listening` is told the URL before the model is loaded.
    """
    if (fraction := options.pop('memory_fraction')) is not None:
        os.environ[FRACTION] = str(fraction)
    reserve()
    settings = given_settings(options)
    weights = pop_weight_options(options)
    engine = {name: options[name] for name in ENGINE}
    for unused in ('rows', 'slots', 'exact'):
        del options[unused]
    try:
        from vipllava_jax.serving.options import ServerOptions
        from vipllava_jax.serving.process import run
        from vipllava_jax.serving.state import Server
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the server needs the package {error.name}: pip install 'vipllava-jax[serve]'"
        ) from None
    chosen = ServerOptions(name=name or default_name(source), api_keys=keys, **options)
    engine |= {'max_pixels': chosen.limits.picture_pixels, **limited(engine['slots'], chosen.max_model_len)}
    plan = ModelPlan(source, weights, mesh, settings, chosen.template)
    start = partial(start_engine, plan, engine)
    run(Server(chosen, start), partial(announce, chosen), listening)


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Removes the options of generation -> those that were given, because the others are the model's."""
    context = click.get_current_context()
    return {
        name: value
        for name, value in pop_settings(options, as_json=True).items()
        if context.get_parameter_source(name) != ParameterSource.DEFAULT
    }


def default_name(source: str) -> str:
    """The name of a model in requests: that on the Hub, or the last part of the path of a folder."""
    return Path(source).resolve().name if os.path.isdir(source) else source


def limited(slots: int, most: int | None) -> dict[str, Any]:
    """The rows of an engine for prompts and answers of at most `most` tokens; None for the whole context."""
    if most is None:
        return {}
    return {'slots': min(slots, most), 'long_rows': {most: 2} if most > slots else 0}


class ModelPlan(NamedTuple):
    """The model that is to be loaded."""

    source: str
    options: 'WeightOptions'
    mesh: Any
    settings: dict[str, Any]  # of generation, that replace those of its files
    template: str


def start_engine(plan: ModelPlan, options: dict[str, Any], report: 'Progress') -> 'Engine':
    """Loads a model while the programs of its engine are compiled, and starts the engine.

    Everything but the values of the weights is checked first. Progress is shown on stderr, and to those who
    ask the server.
    """
    weights, processor = open_model(plan.source, plan.options, plan.mesh)
    from vipllava_jax.asking.starting import compile_ahead
    from vipllava_jax.engine.question import check_settings
    from vipllava_jax.inputs.prompts import check_template
    from vipllava_jax.loading import Model, default_settings

    check_template(plan.template, processor.chat_template)
    settings = dataclasses.replace(default_settings(weights.folder), **plan.settings)
    check_settings(settings)
    start = compile_ahead(weights, processor, **options)
    model = Model(load_weights(weights, report), weights.cfg, processor, settings)
    report('programs', 0, 0)
    with count_bar('programs') as show:

        def progress(done: int, total: int) -> None:
            show(done, total)
            report('programs', done, total)

        return start(model, progress)


def load_weights(weights: 'Source', report: 'Progress') -> dict[str, Any]:
    """Loads the params of a model, with progress."""
    from vipllava_jax.progress_bar import progress_bar

    with progress_bar(f'loading {weights.folder.name}') as show:

        def progress(done: int, total: int, name: str) -> None:
            show(done, total, name)
            report('weights', done, total)

        return weights.load(progress)


def announce(options: 'ServerOptions', url: str) -> None:
    """Says on stderr where the server is, and how it is called."""
    click.echo(f'vipllava: serving {printable(options.name)} at {url}', err=True)
    if options.uds is not None:
        url = f'--unix-socket {shlex.quote(options.uds)} http://localhost'
    key = " -H 'Authorization: Bearer KEY'" if options.api_keys else ''
    body = {'model': options.name, 'messages': [{'role': 'user', 'content': 'What is this?'}]}
    example = f"{url}/v1/chat/completions{key} -H 'Content-Type: application/json'"
    click.echo(f'  curl {example} -d {printable(shlex.quote(json.dumps(body)))}', err=True)
