"""Generates examples from their numbers: a scene, its marks and a conversation about it."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from PIL import Image

from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.marking import Marked, Split, draw_marks, make_marks
from vipllava_jax.demo.question_types import TYPES, choose_questions, with_instruction
from vipllava_jax.demo.questions import Question, View
from vipllava_jax.demo.scene_questions import world_question
from vipllava_jax.demo.world import KINDS, Scene, make_scene
from vipllava_jax.inputs.prompts import Turn


class Example(NamedTuple):
    """A scene, its marks, the seed of their random variation (None: fixed), and questions about it."""

    scene: Scene | None  # None: a conversation without a picture
    marks: tuple[Marked, ...]
    seed: int | None
    questions: tuple[Question, ...]
    turns: tuple[Turn, ...]

    def picture(self) -> Image.Image | None:
        """The scene with its marks drawn; None without a scene."""
        return None if self.scene is None else draw_marks(picture(self.scene), self.marks, self.seed)


def example(
    number: int,
    split: Split = 'training',
    *,
    questions: int = 8,
    types: Sequence[str] = TYPES,
    kinds: tuple[str, ...] = KINDS,
) -> Example:
    """The example with this number, always the same; held-out ones have marks of held-out combinations."""
    rng = Random(f'{split} {number}')
    if split == 'training' and rng.random() < 0.02:
        return make_example(None, rng, questions=questions)
    drawn = make_example(make_scene(rng, kinds), rng, split, questions=questions, types=types)
    while split == 'held out' and not drawn.questions:
        drawn = make_example(make_scene(rng, kinds), rng, split, questions=questions, types=types)
    return drawn


def make_example(
    scene: Scene | None,
    rng: Random,
    split: Split = 'training',
    *,
    questions: int = 8,
    types: Sequence[str] = TYPES,
) -> Example:
    """Random marks on a scene and a conversation about it; without a scene, a conversation in words only."""
    if scene is None:
        chosen, marks, seed = [world_question(rng) for _ in range(questions)], [], None
    else:
        count = rng.choices((0, 1, 2), (1, 4, 6) if split == 'training' else (0, 6, 4))[0]
        marks = make_marks(rng, scene, count, split)
        seed = None if rng.random() < 0.25 else rng.getrandbits(32)
        unmarked = split == 'held out' and not marks
        chosen = [] if unmarked else choose_questions(rng, View(scene, marks), questions, types)
    pairs = [with_instruction(rng, question) for question in chosen]
    turns = [turn for text, answer in pairs for turn in (Turn('user', text), Turn('assistant', answer))]
    return Example(scene, tuple(marks), seed, tuple(chosen), tuple(turns))
