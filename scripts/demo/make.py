"""Writes the demo model's training data: pictures of its world, rows about them, and initial weights.

    python scripts/demo/make.py /tmp/world
    python scripts/demo/make.py /tmp/fish --pictures 400 --teach fish

The rows are in the format of `vipllava train`: unmarked pictures, marks that training draws, conversations.
The same arguments give the same files, and existing files are not written again. With `--teach`, for a model
that has been trained on the world, nearly every picture has things of a new kind.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track

from vipllava_jax.config import Config, TextConfig, VisionConfig
from vipllava_jax.demo import vocabulary
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.examples import Example, example, make_example
from vipllava_jax.demo.question_types import TYPES
from vipllava_jax.demo.world import KINDS, NEW_KIND, make_scene

PART = 250  # pictures per task of a worker process
HELD_OUT = 2000  # rows of one question each, for the held-out loss
VISION = VisionConfig(image_size=182, patch_size=14, width=160, layers=7, heads=5, mlp=480)
TEXT = TextConfig(
    vocab=vocabulary.SIZE, width=192, layers=4, heads=6, kv_heads=2, head_size=32, mlp=512, context=1024
)
TAPS = (7, 6, 5, 4, 2)
Make = Callable[[int], Iterator[Example]]  # a number -> the examples about its scene


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    arguments.add_argument('folder', type=Path)
    arguments.add_argument('--pictures', type=int, default=200_000, help='200000 take 5 GB')
    arguments.add_argument('--rows-each', type=int, default=4, help='conversations about a picture')
    arguments.add_argument('--teach', choices=[NEW_KIND], help='a kind of thing that is not in the world')
    arguments.add_argument('--seed', type=int, default=0, help='of the random weights')
    args = arguments.parse_args()
    make = partial(rows, rows_each=args.rows_each, teach=args.teach)
    write_rows(args.folder, 'training', args.pictures, make)
    if not args.teach:
        write_rows(args.folder, 'held-out', HELD_OUT, held_out)
        write_start(args.folder / 'start', args.seed)


def write_rows(folder: Path, name: str, pictures: int, make: Make) -> None:
    """Writes NAME.jsonl and its pictures, a thousand per folder, in parts on all cores."""
    parts = [range(n, min(n + PART, pictures)) for n in range(0, pictures, PART)]
    for thousand in range(-(-pictures // 1000)):
        (folder / 'pictures' / name / f'{thousand:04}').mkdir(parents=True, exist_ok=True)
    (folder / 'parts' / name).mkdir(parents=True, exist_ok=True)
    write = partial(write_part, folder=folder, name=name, make=make)
    with multiprocessing.get_context('spawn').Pool(min(len(parts), os.cpu_count() or 1)) as pool:
        written = pool.imap(write, parts)
        files = list(track(written, f'{name}.jsonl', len(parts), console=Console(stderr=True)))
    with open(folder / f'{name}.jsonl', 'wb') as joined:
        for file in files:
            with open(file, 'rb') as one:
                shutil.copyfileobj(one, joined)


def write_part(numbers: range, folder: Path, name: str, make: Make) -> Path:
    """Writes some pictures and then the file of their rows, which marks the part as complete."""
    file = folder / 'parts' / name / f'{numbers.start:07}-{numbers.stop:07}.jsonl'
    if not file.is_file():
        lines = [json.dumps(row) + '\n' for n in numbers for row in make_rows(n, folder, name, make(n))]
        partial_file = file.with_suffix('.partial')
        partial_file.write_text(''.join(lines), encoding='utf-8')
        partial_file.rename(file)
    return file


def make_rows(number: int, folder: Path, name: str, examples: Iterator[Example]) -> Iterator[dict[str, Any]]:
    """The rows of the examples about one scene; writes its picture without marks."""
    at = f'{name}/{number // 1000:04}/{number:07}.jpg'
    for n, one in enumerate(examples):
        if one.scene and not n:
            picture(one.scene).save(folder / 'pictures' / at, quality=92, subsampling=0)
        yield {
            'id': f'world-{name.replace("-", "_")}-{number:07}-{n}',
            **({'image': at, 'marks': [str(mark) for mark, _ in one.marks]} if one.scene else {}),
            'conversations': [
                {'from': 'human' if turn.role == 'user' else 'gpt', 'value': turn.text} for turn in one.turns
            ],
        }


def rows(number: int, rows_each: int, teach: str | None) -> Iterator[Example]:
    """The examples about one scene, each with different marks and a different conversation."""
    first = example(number) if teach is None else taught(number, teach)
    yield first
    for n in range(1, rows_each):
        yield make_example(first.scene, Random(f'row {number} {n}'))


def held_out(number: int) -> Iterator[Example]:
    """A held-out example with one question; the types take turns, except the one without a picture."""
    yield example(number, 'held out', questions=1, types=[TYPES[number % (len(TYPES) - 1)]])


def taught(number: int, kind: str) -> Example:
    """An example whose scene has things of this kind and of one known kind."""
    rng = Random(f'{kind} {number}')
    return make_example(make_scene(rng, (kind, rng.choice(KINDS))), rng)


def config(image: int) -> Config:
    """The config, 4.0 million parameters; `image` is the id of <image>, and <pad> has the next one."""
    return Config(vision=VISION, text=TEXT, feature_layers=TAPS, image_token=image, pad=image + 1)


def write_start(folder: Path, seed: int) -> None:
    """Writes the initial model, with scaled random weights, and its processor files."""
    import jax

    from vipllava_jax import checkpoint
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.model.params import init

    files = folder.with_name('processor')
    vocabulary.write_processor(files, VISION.image_size, VISION.patch_size)
    cfg = config(Processor.load(files).image_id)

    def scaled(path: tuple[Any, ...], w: jax.Array) -> jax.Array:
        return w * gain(jax.tree_util.keystr(path, simple=True, separator='/'))

    params = jax.tree_util.tree_map_with_path(scaled, init(jax.random.key(seed), cfg))
    checkpoint.save(folder, params, cfg, files_from=files, overwrite=True)


def gain(path: str) -> float:
    """The factor of a weight at init: larger embeddings, and smaller outputs of residual branches."""
    if path.endswith('embed/w'):
        return 20.0
    if path.endswith(('o/w', 'down/w')):
        return (2 * (VISION.layers if path.startswith('clip') else TEXT.layers)) ** -0.5
    return 1.0


if __name__ == '__main__':
    main()
