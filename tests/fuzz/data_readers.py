"""Reads data, files of answers, settings and command lines with the package; each as in `readers`."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any


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
    from vipllava_jax.data import row_checks
    from vipllava_jax.data.batch_settings import BatchSettings
    from vipllava_jax.data.batches import Batches
    from vipllava_jax.inputs.processor import Processor

    found = row_checks.read_rows([file], skip_broken=skip_broken)
    batches = Batches(
        found,
        Processor.load(folder / 'model'),
        BatchSettings(batch_size=2, skip_broken=skip_broken),
        report=lambda note: None,
    )
    for step in range(batches.steps + 1):
        batches.at(step)


def _read_for_evaluation(folder: Path, file: Path, skip_broken: bool) -> None:
    from tests.fuzz.base import CFG
    from vipllava_jax.evaluation.batches import group_cases
    from vipllava_jax.evaluation.cases import read_cases
    from vipllava_jax.inputs.processor import Processor

    cases = read_cases(file, skip_broken=skip_broken)
    batches = group_cases(cases, Processor.load(folder / 'model'), CFG, batch=2, skip_broken=skip_broken)
    for batch in batches.batches:
        batches.prepare(batch)


def regions(folder: Path) -> None:
    """Draws the regions of both files as marks of several shapes."""
    from vipllava_jax.answering.region_marks import region_mark
    from vipllava_jax.data.coco import as_annotation, read_annotations
    from vipllava_jax.data.region_files import read_regions
    from vipllava_jax.inputs.images import open_image
    from vipllava_jax.inputs.marks import draw

    picture = open_image(folder / 'photo.png')
    found = [region.value for region in read_regions(folder / 'boxes.csv')]
    found += read_annotations(folder / 'coco.json', 'photo.png').annotations
    for shape in ('rectangle', 'mask', 'mask contour', 'scribble'):
        marks = [region_mark(region, shape, picture.size) for region in found]
        draw(picture, marks)
        json.dumps([as_annotation(mark, picture.size) for mark in marks])


def journals(folder: Path) -> None:
    """Resumes an evaluation and a run, up to the point where weights are needed."""
    from tests.fuzz.base import ABOUT, CFG
    from vipllava_jax.evaluation import run
    from vipllava_jax.evaluation.batches import group_cases
    from vipllava_jax.evaluation.cases import read_cases
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.training import checkpoints, run_record
    from vipllava_jax.training.held_out import BestStep
    from vipllava_jax.training.metrics_log import MetricsLog
    from vipllava_jax.training.settings_file import read_settings

    def stop_here(_: Any) -> Any:
        raise ChecksPassed

    cases = read_cases(folder / 'rows.jsonl')
    batches = group_cases(cases, Processor.load(folder / 'model'), CFG, max_new_tokens=2)
    with contextlib.suppress(ChecksPassed):
        run.run(batches, stop_here, folder / 'answers.jsonl', ABOUT)
    with (
        contextlib.closing(MetricsLog(folder / 'run', 2)) as log,
        checkpoints.open_checkpoints(folder / 'run' / 'checkpoints', keep=2) as saved,
    ):
        BestStep(log.records, saved.steps())
    with contextlib.chdir(folder):
        settings = read_settings('run.toml')
        run_record.exported_step(folder / 'run', folder / 'run' / 'adapter')
        run_record.record_run(folder / 'run', settings, resumes=True)


def run(folder: Path) -> None:
    """Reads a run's settings, and does all checks before its start."""
    from vipllava_jax.training import prepare
    from vipllava_jax.training.progress import ProgressListener
    from vipllava_jax.training.settings_file import read_settings

    with contextlib.chdir(folder):
        prepare.prepare_run(read_settings('run.toml'), ProgressListener())


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
