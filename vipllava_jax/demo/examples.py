"""Examples of the world: a picture with its marks and a conversation about it, each from a seed."""

from random import Random
from typing import NamedTuple

from PIL import Image

from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.marking import Marked, Split, draw_marks, make_marks
from vipllava_jax.demo.questions import Question, View, about_world, ask, styled
from vipllava_jax.demo.world import KINDS, Scene, make_scene
from vipllava_jax.inputs.prompts import Turn


class Example(NamedTuple):
    """A scene, its marks, the seed that varies them (None: a fixed hand), and what is asked about it."""

    scene: Scene | None  # None: words alone
    marks: tuple[Marked, ...]
    seed: int | None
    questions: tuple[Question, ...]
    turns: tuple[Turn, ...]

    def picture(self) -> Image.Image | None:
        return None if self.scene is None else draw_marks(picture(self.scene), self.marks, self.seed)


def example(
    number: int, split: Split = 'training', *, questions: int = 6, kinds: tuple[str, ...] = KINDS
) -> Example:
    """The example of this number: always the same, and of no other split."""
    rng = Random(f'{split} {number}')
    if split == 'training' and rng.random() < 0.02:
        asked = [about_world(rng) for _ in range(questions)]
        return Example(None, (), None, tuple(asked), converse(rng, asked))
    scene = make_scene(rng, kinds)
    count = rng.choices((0, 1, 2), (1, 6, 4) if split == 'training' else (0, 6, 4))[0]
    marks = make_marks(rng, scene, count, split)
    seed = None if rng.random() < 0.25 else rng.getrandbits(32)
    asked = ask(rng, View(scene, marks), questions)
    return Example(scene, tuple(marks), seed, tuple(asked), converse(rng, asked))


def converse(rng: Random, questions: list[Question]) -> tuple[Turn, ...]:
    """Questions and answers as turns."""
    pairs = [styled(rng, question) for question in questions]
    return tuple(
        Turn(role, text) for pair in pairs for role, text in zip(('user', 'assistant'), pair, strict=True)
    )
