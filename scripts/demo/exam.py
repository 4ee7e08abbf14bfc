"""Writes the exam of the demo world: questions with known answers, as rows for `vipllava eval`.

    python scripts/demo/exam.py /tmp/exam
    vipllava eval --model demo --data /tmp/exam/types.jsonl --by type --by hand
    vipllava eval --model demo --data /tmp/exam/marks.jsonl --by shape
    vipllava eval --model demo --data /tmp/exam/moved.jsonl --together pair

All pictures are held out, and so are all combinations of a thing's kind, its colour and the mark's shape. The
marks are already drawn on the pictures: three in four vary as in training, the others look as drawn by
`vipllava draw`. Each row has one question. With `--taught` it writes taught.jsonl instead: questions about
marked things on pictures with a new kind of thing.
"""

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from vipllava_jax.demo.examples import Example, example, make_example
from vipllava_jax.demo.marking import SHAPES, Marked, make_mark
from vipllava_jax.demo.question_types import TYPES
from vipllava_jax.demo.world import KINDS, NEW_KIND, held_out, make_scene
from vipllava_jax.inputs.marks import COLORS
from vipllava_jax.inputs.prompts import Turn


class Case(NamedTuple):
    """An example with one question, and the fields of its row by which answers are grouped."""

    fields: dict[str, Any]
    example: Example


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    arguments.add_argument('folder', type=Path)
    arguments.add_argument('--each', type=int, default=200, help='of each type and each mark, and pairs')
    arguments.add_argument(
        '--taught', choices=[NEW_KIND], help='ask about this kind of thing, next to others'
    )
    args = arguments.parse_args()
    if args.taught:
        write(args.folder, 'taught', [*taught(args.taught, args.each)])
        return
    write(args.folder, 'types', [case for type in TYPES for case in of_type(type, args.each)])
    write(args.folder, 'marks', [case for shape in SHAPES for case in of_mark(shape, args.each)])
    write(args.folder, 'moved', [*moved(args.each)])


def write(folder: Path, name: str, cases: Sequence[Case]) -> Path:
    """Writes NAME.jsonl and its pictures, using all cores; returns the path of the file."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context('spawn').Pool(os.cpu_count()) as pool:
        write_row = partial(make_row, folder=folder, name=name)
        written = pool.imap(write_row, enumerate(cases), chunksize=50)
        rows = list(track(written, f'{name}.jsonl', len(cases), console=Console(stderr=True)))
    file = folder / f'{name}.jsonl'
    file.write_text(''.join(json.dumps(one) + '\n' for one in rows), encoding='utf-8')
    return file


def make_row(numbered: tuple[int, Case], folder: Path, name: str) -> dict[str, Any]:
    """The row of a case; writes its picture as PNG, which is lossless."""
    number, (fields, example) = numbered
    question, answer = example.turns
    row = {'id': f'{name}-{number:05}', 'question': question.text, 'answer': answer.text, **fields}
    if image := example.picture():
        row['image'] = f'{name}/{number:05}.png'
        image.save(folder / row['image'], compress_level=1)
    return row


def of_type(type: str, each: int) -> Iterator[Case]:
    """Cases with `each` questions of a type."""
    for number in range(each):
        if type == 'words':
            one = make_example(None, Random(f'held out words {number}'), questions=1)
        else:
            one = example(number, 'held out', questions=1, types=[type])
        hand = 'varied' if one.seed is not None else 'fixed' if one.marks else 'none'
        yield Case({'type': type, 'hand': hand}, one)


def of_mark(shape: str, each: int) -> Iterator[Case]:
    """Cases with `each` questions about the kind of a thing with a single mark of this shape."""
    examples = (example(number, 'held out', questions=1, types=['kind']) for number in itertools.count())
    fit = (one for one in examples if [mark.shape for mark, _ in one.marks] == [shape])
    return (Case({'shape': shape}, one) for one in itertools.islice(fit, each))


def moved(pairs: int) -> Iterator[Case]:
    """Pairs of cases on the same picture, with the same mark on things of two different kinds."""
    for number in range(pairs):
        rng = Random(f'moved {number}')
        places: list[int] = []
        while len(places) < 2:
            scene, shape = make_scene(rng), rng.choice(SHAPES)
            fit = {o.kind: i for i, o in enumerate(scene.things) if held_out(o.kind, o.color, shape)}
            places = rng.sample([*fit.values()], min(len(fit), 2))
        color, seed = rng.choice(tuple(COLORS)), rng.getrandbits(32)
        for at in places:
            thing = scene.things[at]
            mark = Marked(make_mark(rng, thing, shape, color), at)
            turns = (Turn('user', 'What is the marked object?'), Turn('assistant', f'a {thing.kind}'))
            yield Case({'pair': number}, Example(scene, (mark,), seed, (), turns))


def taught(kind: str, each: int) -> Iterator[Case]:
    """Cases about marked things on pictures with a new kind of thing and one known kind."""
    for number in range(each):
        pair = (kind, KINDS[number % len(KINDS)])
        one = example(number, 'held out', questions=1, types=['kind'], kinds=pair)
        new = one.questions[0].answer == f'a {kind}'
        yield Case({'kind': kind if new else 'other'}, one)


if __name__ == '__main__':
    main()
