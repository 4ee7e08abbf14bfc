r"""Measures training at 7B size, on random weights and synthetic rows: tokens per second and MFU.

    python scripts/train_7b.py --work /tmp/train-7b -- \
        --recipe lora --batch 16 --accumulate 2 --remat products
    python scripts/train_7b.py --work /tmp/train-7b -- \
        --recipe finetune --batch 16 --param-dtype bfloat16 --moment-dtype bfloat16

Arguments after `--` are passed to `vipllava train`. The first call writes the model, 14 GB, which later calls
reuse. Each row has a picture, and is cut to 1,024 tokens. A run is killed after the measured steps and saves
nothing, because its state can be larger than the disk. `--small` uses a model of a few megabytes.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WARM_UP = 3  # the first steps, not measured, in which programs are compiled and tuned


def make(folder: Path, small: bool) -> None:
    """Writes a model with random weights and the tests' processor, and rows."""
    import jax.numpy as jnp
    import numpy as np
    from PIL import Image

    from tests.makers import write_processor_files
    from vipllava_jax import checkpoint
    from vipllava_jax.benchmark.subject import PRESETS, random_leaves
    from vipllava_jax.model.params import abstract

    cfg = PRESETS['tiny' if small else '7b']
    image = write_processor_files(folder / 'files', cfg.vision.image_size, cfg.vision.patch_size)
    cfg = dataclasses.replace(cfg, image_token=image, pad=image + 1)
    leaves = random_leaves(cfg, jnp.bfloat16)
    checkpoint.save(
        folder / 'model', abstract(cfg, jnp.bfloat16), cfg, leaves=leaves, files_from=folder / 'files'
    )
    rng, rows = np.random.default_rng(0), []
    for i in range(64):
        pixels = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.jpg')
        conversation = [('human', '<image>\nWhat is it?'), ('gpt', 'A dog. ' * (20 if small else 70))]
        turns = [{'from': who, 'value': text} for who, text in conversation]
        rows.append({'id': f'row-{i}', 'image': f'{i}.jpg', 'conversations': turns})
    (folder / 'rows.json').write_text(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=8, help='how many are measured, after the first few')
    parser.add_argument('--small', action='store_true')
    parser.add_argument('flags', nargs='*')
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    if not (args.work / 'rows.json').exists():
        print('writing a model with random weights, and rows …', file=sys.stderr, flush=True)
        code = f'from scripts.train_7b import *; make(Path({str(args.work)!r}), {args.small})'
        subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parent.parent)
    output = args.work / 'run'
    shutil.rmtree(output, ignore_errors=True)
    where = ['--model', args.work / 'model', '--data', args.work / 'rows.json', '--output', output]
    length = ['--steps', 10_000, '--save-every', 10_000, '--max-length', 1024, '--log-every', 1]
    command = [sys.executable, '-m', 'vipllava_jax', 'train', *where, *length, *args.flags]
    count = WARM_UP + args.steps
    steady = list(records([str(word) for word in command], output / 'metrics.jsonl', count))[WARM_UP:]
    for name in ('seconds', 'tokens', 'tokens_per_second', 'tflops', 'mfu'):
        if values := [record[name] for record in steady if name in record]:
            print(f'{name:<18} {statistics.median(values):g}')


def records(command: list[str], metrics: Path, count: int) -> Iterator[dict[str, Any]]:
    """Runs a command; yields the metrics of its first `count` steps, then kills it."""
    run = subprocess.Popen(command)
    try:
        lines: list[str] = []
        while len(lines) < count:
            if run.poll() is not None:
                sys.exit(run.returncode)
            time.sleep(0.1)
            done = len(lines)
            lines = metrics.read_text().split('\n')[:-1] if metrics.exists() else []
            if len(lines) > done:
                print(f'step {len(lines)}/{count}', file=sys.stderr, flush=True)
        yield from map(json.loads, lines[:count])
    finally:
        run.kill()
        run.wait()


if __name__ == '__main__':
    main()
