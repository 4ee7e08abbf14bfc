"""A model and rows small enough to train in a test, and functions that examine a run."""

import json
from pathlib import Path
from typing import Any

import jax

import vipllava_jax as vj
from tests.makers import noise, write_processor_files
from vipllava_jax import checkpoint
from vipllava_jax.arrays import flat
from vipllava_jax.config import Config, TextConfig, VisionConfig
from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.model.params import init
from vipllava_jax.training.loss import loss
from vipllava_jax.training.progress import ProgressListener

TIMES = ('seconds', 'tokens_per_second')


def world(folder: Path) -> tuple[Path, Path]:
    """A model, and the folder that has rows.jsonl and held.jsonl."""
    rows(folder)
    rows(folder, 'held.jsonl', 3)
    return small(folder), folder


def small(folder: Path) -> Path:
    """A model with two layers in the tower and in the decoder, and a processor."""
    image = write_processor_files(folder / 'files', 28, 14)
    cfg = Config(
        vision=VisionConfig(image_size=28, patch_size=14, width=32, layers=2, heads=2, mlp=40),
        text=TextConfig(vocab=400, width=48, layers=2, heads=6, kv_heads=2, head_size=8, mlp=56, context=512),
        feature_layers=(-1, 1),
        image_token=image,
        pad=image + 1,
    )
    model = folder / 'model'
    checkpoint.save(model, init(jax.random.key(0), cfg), cfg, files_from=folder / 'files')
    return model


def rows(folder: Path, name: str = 'rows.jsonl', count: int = 10) -> Path:
    """Writes pictures and a file with one question about each."""
    lines = []
    for i in range(count):
        noise(40, 30, seed=i).save(folder / f'{i}.png')
        talk = [('human', '<image>\nWhat is it?'), ('gpt', 'A dog.' if i % 2 else 'A sofa.')]
        turns = [{'from': who, 'value': text} for who, text in talk]
        lines.append(json.dumps({'id': f'row-{i}', 'image': f'{i}.png', 'conversations': turns}))
    (folder / name).write_text('\n'.join(lines))
    return folder / name


def metrics(output: Path) -> list[dict[str, Any]]:
    """The records of a run, without times and rates."""
    records = [json.loads(line) for line in (output / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


class Listener(ProgressListener):
    """Records the progress of a run."""

    def __init__(self):
        self.description, self.notes, self.steps = {}, [], []

    def run_started(self, description, done, steps, log_every):
        self.description = description

    def step_done(self, record):
        self.steps.append(record['step'])

    def note(self, text):
        self.notes.append(text)


def leaves(folder: Path) -> dict[str, Any]:
    """The weights of a model by their paths."""
    return dict(flat(vj.load(folder, fuse=False).params))


def mean_loss(model, file, **batch_settings):
    """The loss of a model on the first batch of a file's rows, by the functions that the loop uses."""
    batch = Batches(
        read_rows([file]), model.processor, BatchSettings(batch_size=4, fit='pad', **batch_settings)
    ).at(0)
    images = model.processor.image_settings.normalize(batch.examples.images)
    total, count = loss(model.params, batch.examples._replace(images=images), model.cfg)
    return float(total) / int(count)
