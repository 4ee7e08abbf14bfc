"""All that the demo model is trained from: pictures of its world, rows about them, a model of random weights.

    python benchmarks/demo/make.py /tmp/world
    python benchmarks/demo/make.py /tmp/fish --pictures 1000 --teach fish

The rows are as `vipllava train` reads them: unmarked pictures, marks that training draws, conversations. The
same numbers give the same files. With `--teach`, for a model that knows the world, a kind of thing that is
not in it is on nearly every picture.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from vipllava_jax.config import Config, TextConfig, VisionConfig
from vipllava_jax.demo import vocabulary
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.examples import Example, about, example
from vipllava_jax.demo.world import KINDS, NEW_KIND, make_scene

PART = 250  # pictures that a process makes at a time
VISION = VisionConfig(image_size=168, patch_size=14, width=160, layers=7, heads=5, mlp=480)
TEXT = TextConfig(
    vocab=vocabulary.SIZE, width=192, layers=4, heads=6, kv_heads=2, head_size=32, mlp=512, context=1024
)
TAPS = (7, 6, 5, 4, 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    arguments.add_argument('folder', type=Path)
    arguments.add_argument('--pictures', type=int, default=200_000, help='200000 take 6 GB')
    arguments.add_argument('--rows-each', type=int, default=4, help='conversations about a picture')
    arguments.add_argument('--teach', choices=[NEW_KIND], help='a kind of thing that is not in the world')
    arguments.add_argument('--seed', type=int, default=0, help='of the random weights')
    given = arguments.parse_args()
    write_rows(given.folder, given.pictures, given.rows_each, given.teach)
    if not given.teach:
        write_start(given.folder, given.seed)


def write_rows(folder: Path, pictures: int, rows_each: int, teach: str | None = None) -> None:
    """training.jsonl and the pictures, a thousand to a folder."""
    for thousand in range(-(-pictures // 1000)):
        (folder / 'pictures' / f'{thousand:04}').mkdir(parents=True, exist_ok=True)
    parts = [range(n, min(n + PART, pictures)) for n in range(0, pictures, PART)]
    make = partial(part, folder=folder / 'pictures', rows_each=rows_each, teach=teach)
    processes = multiprocessing.get_context('spawn').Pool(min(len(parts), os.cpu_count() or 1))
    with processes as pool, open(folder / 'training.jsonl', 'w', encoding='utf-8') as file:
        file.writelines(pool.imap(make, parts))


def part(numbers: range, folder: Path, rows_each: int, teach: str | None) -> str:
    return ''.join(
        json.dumps(row) + '\n' for number in numbers for row in rows(number, folder, rows_each, teach)
    )


def rows(number: int, folder: Path, rows_each: int, teach: str | None) -> Iterator[dict[str, Any]]:
    """A picture's rows, each with its own marks and conversation; the picture is written on the way."""
    first = example(number) if teach is None else taught(number, teach)
    name = f'{number // 1000:04}/{number:07}.jpg'
    if first.scene:
        picture(first.scene).save(folder / name, quality=95, subsampling=0)
    for n in range(rows_each):
        made = about(first.scene, Random(f'row {number} {n}')) if n else first
        yield {
            'id': f'world-{number:07}-{n}',
            **({'image': name, 'marks': [str(mark) for mark, _ in made.marks]} if made.scene else {}),
            'conversations': [
                {'from': 'human' if turn.role == 'user' else 'gpt', 'value': turn.text} for turn in made.turns
            ],
        }


def taught(number: int, kind: str) -> Example:
    """An example with things of this kind among others."""
    rng = Random(f'{kind} {number}')
    scene = make_scene(rng, (kind, rng.choice(KINDS)))
    return about(scene, rng)


def config(image: int) -> Config:
    """The architecture, 4.0 million parameters; `image` is the id of <image>, that of <pad> follows."""
    return Config(vision=VISION, text=TEXT, feature_layers=TAPS, image_token=image, pad=image + 1)


def write_start(folder: Path, seed: int) -> None:
    """The model that training begins with, in `start`."""
    import jax

    from vipllava_jax import checkpoint
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.model.vipllava import init

    files = folder / 'processor'
    vocabulary.write_processor(files, VISION.image_size, VISION.patch_size)
    cfg = config(Processor.load(files).image_id)

    def scaled(path: tuple[Any, ...], w: jax.Array) -> jax.Array:
        return w * gain(jax.tree_util.keystr(path, simple=True, separator='/'))

    params = jax.tree_util.tree_map_with_path(scaled, init(jax.random.key(seed), cfg))
    checkpoint.save(folder / 'start', params, cfg, files_from=files)


def gain(path: str) -> float:
    """What makes the embeddings as large as the rest, and keeps the sum over the layers from growing."""
    if path.endswith('embed/w'):
        return 20.0
    if path.endswith(('o/w', 'down/w')):
        return (2 * (VISION.layers if path.startswith('clip') else TEXT.layers)) ** -0.5
    return 1.0


if __name__ == '__main__':
    main()
