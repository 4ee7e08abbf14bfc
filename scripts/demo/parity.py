"""Compares answers about the demo world with those of transformers and its processor, in float32.

    python scripts/demo/parity.py /tmp/exam --count 200

It asks `--count` of the questions that exam.py has written to the folder, evenly spaced over all files.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from vipllava_jax.evaluation import evaluate
from vipllava_jax.inputs.prompts import Turn, render
from vipllava_jax.loading import load, locate

LONGEST = 96  # tokens per answer
Row = dict[str, Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    arguments.add_argument('exam', type=Path, help='the folder that exam.py has written')
    arguments.add_argument('--model', default='demo')
    arguments.add_argument('--count', type=int, default=200)
    args = arguments.parse_args()
    every = [json.loads(line) for file in sorted(args.exam.glob('*.jsonl')) for line in file.open()]
    rows = [every[n * len(every) // args.count] for n in range(args.count)]
    pairs = [*zip(ours(args.model, rows, args.exam), theirs(args.model, rows, args.exam), strict=True)]
    for row, (our, their) in zip(rows, pairs, strict=True):
        if our != their:
            print(f'{row["id"]}: {row["question"]}\n  here          {our}\n  transformers  {their}')
    print(f'{sum(our == their for our, their in pairs)} of {len(pairs)} answers are the same')


def ours(source: str, rows: Sequence[Row], images: Path) -> list[str]:
    """The answers of `vipllava eval`."""
    print('asking vipllava-jax …', file=sys.stderr, flush=True)
    result = evaluate(load(source, dtype='float32'), rows, images=images, max_new_tokens=LONGEST)
    return [answer['answer'] for answer in result.answers]


def theirs(source: str, rows: Sequence[Row], images: Path) -> Iterator[str]:
    """The answers of transformers."""
    import torch
    from transformers import AutoProcessor, VipLlavaForConditionalGeneration

    folder = locate(source)
    model = VipLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for row in track(rows, 'transformers', console=Console(stderr=True)):
        pictures = [Image.open(images / row['image'])] if 'image' in row else []
        prompt = render('vipllava', [Turn('user', row['question'])], len(pictures))
        inputs = processor(text=prompt, images=pictures or None, return_tensors='pt')
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        yield processor.decode(ids[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True).strip()


if __name__ == '__main__':
    main()
