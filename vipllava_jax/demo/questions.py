"""Defines questions about a scene, and the phrases that refer to its things."""

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import NamedTuple

from vipllava_jax.demo.marking import Marked, look_alike
from vipllava_jax.demo.world import Scene, Thing

NUMBERS = ('none', 'one', 'two', 'three', 'four', 'five', 'six', 'seven')
Fact = tuple[object, ...]


class Question(NamedTuple):
    """A question, its only right answer (in a few words and as a sentence), and the facts in the answer."""

    type: str
    text: str
    answer: str
    sentence: str
    facts: frozenset[Fact] = frozenset()


class View(NamedTuple):
    """A scene and its marks, the subject of questions."""

    scene: Scene
    marks: Sequence[Marked] = ()

    def thing(self, i: int) -> Thing:
        """The thing that mark `i` is on."""
        return self.scene.things[self.marks[i].thing]


Make = Callable[[Random, View], Question | None]  # None if there is no such question, or no unique answer


def refer_to(rng: Random, view: View, i: int) -> str:
    """A phrase for the thing that mark `i` is on: 'the object within the red rectangle'."""
    mark, noun = view.marks[i].mark, rng.choice(('object', 'thing'))
    if len(view.marks) == 1 and rng.random() < 0.4:
        words = ('the marked {}', 'the {} that is marked', 'the {} with the mark', 'the highlighted {}')
        return rng.choice(words).format(noun)
    phrase = mark.phrase
    others = [m.mark.shape for j, m in enumerate(view.marks) if j != i]
    if not any(look_alike(mark.shape, other) for other in others) and rng.random() < 0.25:
        phrase = phrase.replace(f'{mark.color} ', '')
    return f'the {noun} {phrase}'


def yes_or_no(
    type: str, text: str, yes: bool, facts: Iterable[Fact], replies: tuple[str, str] = ('it is', 'it is not')
) -> Question:
    """A question whose answer is yes or no."""
    sentence = f'Yes, {replies[0]}.' if yes else f'No, {replies[1]}.'
    return Question(type, text, 'yes' if yes else 'no', sentence, frozenset(facts))


def number(type: str, text: str, count: int, facts: Iterable[Fact]) -> Question:
    """A question whose answer is a number."""
    sentence = f'There {"is" if count == 1 else "are"} {NUMBERS[count]}.'
    return Question(type, text, NUMBERS[count], sentence, frozenset(facts))


def plural(kind: str) -> str:
    return {'fish': 'fish', 'cross': 'crosses'}.get(kind, f'{kind}s')
