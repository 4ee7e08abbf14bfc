"""What `vipllava bench` prints and writes."""

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.mesh_text import mesh_text

if TYPE_CHECKING:
    from vipllava_jax.benchmark.engine_run import EngineRun
    from vipllava_jax.benchmark.subject import Subject
    from vipllava_jax.benchmark.timing import Result
    from vipllava_jax.ceilings import Ceilings


def description(subject: 'Subject') -> dict[str, Any]:
    """The versions, device and settings on which the results depend."""
    from vipllava_jax.cli.info import devices, versions

    return {
        'versions': versions(),
        'devices': devices(),
        'flags': {name: os.environ[name] for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS') if name in os.environ},
        'dtype': subject.dtype.name,
        'quantized': subject.quantized,
        'fused': subject.fused,
        'mesh': dict(subject.mesh.shape) if subject.mesh else None,
        'weights_bytes': subject.size,
        'config': dataclasses.asdict(subject.cfg),
    }


def save_results(
    results: 'list[Result]',
    engine: 'EngineRun | None',
    rates: 'Ceilings',
    notes: dict[str, Any],
    path: Path | None,
) -> None:
    """Writes the results after every line, so that an interrupted run keeps them."""
    from vipllava_jax.benchmark import report

    if path:
        data = report.record(results, rates, notes)
        report.write_report(path, data | (engine.record() if engine else {}))


def show_results(
    results: 'list[Result]',
    engine: 'EngineRun | None',
    rates: 'Ceilings',
    notes: dict[str, Any],
    plot: Path | None,
) -> None:
    """Prints the tables on stdout, in full width if that is not a terminal, and draws the plot."""
    from rich.console import Console

    from vipllava_jax.benchmark import engine_report, report, roofline

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    device = ', '.join(sorted(set(notes['devices'].values())))
    if notes['mesh']:
        count = math.prod(notes['mesh'].values())
        device = f'{mesh_text(notes["mesh"])} on {count} x {device}'
    dtype = notes['quantized'] or notes['dtype']
    title = f'{notes["model"]}, {dtype}, {device}'
    if engine and not results:
        click.echo(f'{title}\n{report.rates(rates)}')
    else:
        console.print(report.table(results, rates, title))
        peer = report.PEER_EXPLANATION if report.others(results) else ''
        click.echo(report.EXPLANATION + (report.MESH_EXPLANATION if notes['mesh'] else '') + peer)
    if engine:
        console.print(engine_report.rates_table(engine.measured, engine.about))
        console.print(engine_report.times_table(engine.measured))
        click.echo(engine_report.explanation(engine.measured))
    if plot:
        roofline.plot(plot, results, rates, f'{dtype}, {device}')
