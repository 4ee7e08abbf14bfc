"""Reads data, files of answers, settings and command lines with the package; each as in `readers`."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

ANY: Any = None  # where a value is only passed on


class ChecksPassed(Exception):
    """Raised when all checks have passed, instead of starting the long work."""


def rows(folder: Path) -> None:
    """Reads each data file, with and without skipping broken rows, up to the arrays for the model."""
    errors = []
    for file in (folder / 'rows.json', folder / 'rows.jsonl'):
        for skip_broken in (False, True):
            for read in (_read_for_training, _read_for_evaluation):
                try:
                    read(folder, file, skip_broken)
                except (ValueError, OSError) as error:
                    errors.append(error)
    if errors:
        raise errors[0]


def _read_for_training(folder: Path, file: Path, skip_broken: bool) -> None:
    from vipllava_jax.data import rows
    from vipllava_jax.data.batches import Batches
    from vipllava_jax.inputs.processor import Processor

    found = rows.read([file], skip_broken=skip_broken)
    batches = Batches(
        found,
        Processor.load(folder / 'model'),
        batch_size=2,
        skip_broken=skip_broken,
        report=lambda *notes: None,
    )
    for step in range(batches.steps + 1):
        batches.at(step)


def _read_for_evaluation(folder: Path, file: Path, skip_broken: bool) -> None:
    from tests.fuzz.base import CFG
    from vipllava_jax.evaluation import cases
    from vipllava_jax.evaluation.answering import questions
    from vipllava_jax.inputs.processor import Processor

    found = cases.read(file, skip_broken=skip_broken)
    plan = questions(found, Processor.load(folder / 'model'), CFG, batch=2, skip_broken=skip_broken)
    for batch in plan.batches:
        plan.make(batch)


def journals(folder: Path) -> None:
    """Resumes an evaluation and a run, up to the point where weights are needed."""
    from tests.fuzz.base import ABOUT, CFG
    from vipllava_jax.evaluation import cases, run
    from vipllava_jax.evaluation.answering import questions
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.training import checkpoints, config, identity, loop
    from vipllava_jax.training.metrics import Metrics
    from vipllava_jax.training.progress import Silent

    def stop_here(_: Any) -> Any:
        raise ChecksPassed

    plan = questions(
        cases.read(folder / 'rows.jsonl'), Processor.load(folder / 'model'), CFG, max_new_tokens=2
    )
    with contextlib.suppress(ChecksPassed):
        run.run(plan, stop_here, folder / 'answers.jsonl', ABOUT)
    with (
        contextlib.closing(Metrics(folder / 'run', 2)) as metrics,
        checkpoints.opened(folder / 'run' / 'checkpoints', keep=2) as saved,
    ):
        loop.Run(ANY, saved, metrics, Silent())
    with contextlib.chdir(folder):
        settings = config.settings('run.toml')
        identity.made(folder / 'run', folder / 'run' / 'adapter')
        identity.confirm(folder / 'run', settings, begun=True)


def run(folder: Path) -> None:
    """Reads a run's settings, and does all checks before its start."""
    from vipllava_jax.training import config, prepare
    from vipllava_jax.training.progress import Silent

    with contextlib.chdir(folder):
        prepare.plan(config.settings('run.toml'), Silent())


def command(folder: Path) -> None:
    """Runs a command line in this process, with the folder as the working directory."""
    from vipllava_jax import cli

    fifo = folder / 'fifo'
    os.mkfifo(fifo)
    (folder / 'link.png').symlink_to('photo.png')
    arguments = folder / 'arguments.json'
    sys.argv = ['vipllava', *json.loads(arguments.read_text())]
    sys.stdin = io.TextIOWrapper(io.BytesIO((folder / 'stdin').read_bytes()))
    with contextlib.chdir(folder):
        cli.run()
