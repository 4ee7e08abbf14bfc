"""How often a model answers the world's questions right: by type, by mark, and when the mark moves.

    python benchmarks/demo/accuracy.py --model demo --each 200 --json accuracy.json

All pictures are held out, and so are all combinations of a thing's kind, its colour and the mark's shape. Of
four pictures, three have marks that vary as in training, and one has them as `vipllava draw` draws them. A
question stands alone, and is answered with the likeliest tokens; right is what equals the answer exactly.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL.Image import Image

import vipllava_jax as vj
from vipllava_jax.demo.asking import TYPES
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.examples import Example, about, example
from vipllava_jax.demo.marking import SHAPES, Marked, draw_marks, make_mark
from vipllava_jax.demo.world import KINDS, NEW_KIND, held_out, make_scene
from vipllava_jax.inputs.marks import COLORS
from vipllava_jax.inputs.prompts import Turn, render
from vipllava_jax.loading import locate

LONGEST = 96  # tokens of an answer


class Case(NamedTuple):
    """A question that stands alone, and all that it is counted under."""

    groups: tuple[str, ...]
    picture: Image | None
    question: str
    answer: str


def of_type(type: str, each: int) -> Iterator[Case]:
    """So many questions of a type."""
    for number in range(each):
        made = _held_out(type, number)
        hand = 'hand varied' if made.seed is not None else 'hand fixed' if made.marks else 'no mark'
        yield _case((f'type {type}', hand), made)


def of_mark(shape: str, each: int) -> Iterator[Case]:
    """What a thing with one mark of this shape is, so many times."""
    numbers = itertools.count()
    made = (example(number, 'held out', questions=1, types=['kind']) for number in numbers)
    fit = (one for one in made if [mark.shape for mark, _ in one.marks] == [shape])
    return (_case((f'kind by {shape}',), one) for one in itertools.islice(fit, each))


def held_out_cases(each: int) -> Iterator[Case]:
    """All that the world's model is asked."""
    yield from (case for type in TYPES for case in of_type(type, each))
    yield from (case for shape in SHAPES for case in of_mark(shape, each))
    yield from moved(each)


def _held_out(type: str, number: int) -> Example:
    if type == 'words':
        return about(None, Random(f'held out words {number}'), questions=1)
    return example(number, 'held out', questions=1, types=[type])


def _case(groups: tuple[str, ...], made: Example) -> Case:
    asked, said = made.turns
    return Case(groups, made.picture(), asked.text, said.text)


def moved(pairs: int) -> Iterator[Case]:
    """Twice the same picture, its mark on two things of different kinds."""
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
            image = draw_marks(picture(scene), [mark], seed)
            yield Case((f'moved {number}',), image, 'What is the marked object?', f'a {thing.kind}')


def taught(kind: str, each: int) -> Iterator[Case]:
    """What is marked, on pictures with a kind of thing that the world lacks."""
    for number in range(each):
        pair = (kind, KINDS[number % len(KINDS)])
        made = example(number, 'held out', questions=1, types=['kind'], kinds=pair)
        new = made.questions[0].answer == f'a {kind}'
        yield _case((f'kind, {kind}' if new else 'kind, others beside it',), made)


def answers(model: vj.Model, asked: list[Case], batch: int) -> Iterator[str]:
    """What the model says, in batches of one shape."""
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        filled = part + part[:1] * (batch - len(part))
        made = model.processor(
            [case.question for case in filled], [[case.picture] if case.picture else [] for case in filled]
        )
        out = vj.generate(model.params, made, cfg=model.cfg, max_new_tokens=LONGEST)
        yield from model.processor.decode(out)[: len(part)]


def peers_answers(folder: Path, asked: list[Case]) -> Iterator[str]:
    """What transformers says with the same folder, its own processor's arrays and float32."""
    import torch
    from transformers import AutoProcessor, VipLlavaForConditionalGeneration

    model = VipLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for case in asked:
        prompt = render('vipllava', [Turn('user', case.question)], int(case.picture is not None))
        inputs = processor(text=prompt, images=case.picture, return_tensors='pt')
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        yield processor.decode(ids[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True).strip()


def share(right: list[bool]) -> str:
    """'97.5 % of 200 (± 2.2)': with half of the 95 % interval (Agresti and Coull, 1998)."""
    n, k = len(right), sum(right)
    p = (k + 2) / (n + 4)
    return f'{100 * k / n:5.1f} % of {n} (± {196 * math.sqrt(p * (1 - p) / (n + 4)):.1f})'


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    arguments.add_argument('--model', default='demo')
    arguments.add_argument('--each', type=int, default=200, help='cases of each type, and of each mark')
    arguments.add_argument(
        '--taught', choices=[NEW_KIND], help='ask about this kind, and others beside it, alone'
    )
    arguments.add_argument('--batch', type=int, default=64)
    arguments.add_argument('--dtype', default='float32', help='as the command demo computes')
    arguments.add_argument('--peer', type=int, metavar='N', help='compare about N answers with transformers')
    arguments.add_argument('--json', type=Path, help='every case, with what was said')
    given = arguments.parse_args()
    begin = time.perf_counter()
    model = vj.load(given.model, dtype=given.dtype)
    asked = [*(taught(given.taught, given.each) if given.taught else held_out_cases(given.each))]
    said = list(answers(model, asked, given.batch))
    groups: dict[str, list[bool]] = {}
    for case, answer in zip(asked, said, strict=True):
        for group in case.groups:
            groups.setdefault(group, []).append(answer == case.answer)
    pairs = [all(groups.pop(name)) for name in [*groups] if name.startswith('moved')]
    groups['all types'] = [hit for name, hits in groups.items() if name.startswith('type') for hit in hits]
    groups['moved mark, both right'] = pairs
    groups = {name: hits for name, hits in groups.items() if hits}
    for name, hits in groups.items():
        print(f'{name:<24} {share(hits)}')
    print(f'{len(asked)} questions in {time.perf_counter() - begin:.0f} s')
    if given.peer:
        step = max(len(asked) // given.peer, 1)  # some of each group
        theirs = peers_answers(locate(given.model), asked[::step])
        same = [ours == other for ours, other in zip(said[::step], theirs, strict=True)]
        print(f'{"as transformers says":<24} {share(same)}')
    if given.json:
        told = [
            {'groups': case.groups, 'question': case.question, 'answer': case.answer, 'said': answer}
            for case, answer in zip(asked, said, strict=True)
        ]
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == '__main__':
    main()
