"""Chooses questions about a view, with a weight per type, and the form of their answers."""

from collections.abc import Sequence
from random import Random

from vipllava_jax.demo.of_mark import OF_MARK
from vipllava_jax.demo.of_scene import OF_SCENE, OF_TWO
from vipllava_jax.demo.questions import Fact, Question, View

TYPES = (*OF_MARK, *OF_TWO, *OF_SCENE, 'words')
WEIGHTS = {  # of the other types: 1; types that are harder to learn occur more often
    'relation': 5.0,
    'compare': 3.0,
    'describe': 2.5,
    'kind': 2.0,
    'neighbour': 2.0,
    'list': 2.0,
    'mark': 2.0,
    'exists': 0.4,
    'count': 0.4,
}
SENTENCE = (' Answer in a sentence.', ' Use a whole sentence.')
SHORT = (' Answer with a word or a short phrase.', ' Answer in a few words.', ' Be short.')


def ask(rng: Random, view: View, count: int, types: Sequence[str] = TYPES) -> list[Question]:
    """At most `count` random questions about a view; no answer reveals the answer to another question."""
    makers = {**OF_SCENE, **(OF_MARK if view.marks else {}), **(OF_TWO if len(view.marks) == 2 else {})}
    names = [name for name in makers if name in types]
    weights = [WEIGHTS.get(name, 1.0) for name in names]
    found: list[Question] = []
    known: set[Fact] = set()
    for name in rng.choices(names, weights, k=6 * count) if names else ():
        question = makers[name](rng, view)
        if question and not question.facts & known:
            found.append(question)
            known |= question.facts
        if len(found) == count:
            break
    return found


def styled(rng: Random, question: Question) -> tuple[str, str]:
    """The question's text, sometimes with an instruction on the form, and the answer in that form."""
    wish = rng.random()
    if wish < 0.15:
        return question.text + rng.choice(SENTENCE), question.sentence
    return question.text + (rng.choice(SHORT) if wish < 0.25 else ''), question.answer
