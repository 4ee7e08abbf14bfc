"""Chooses questions about a view, with a weight per type, and the form of their answers."""

from collections.abc import Sequence
from random import Random

from vipllava_jax.demo.mark_questions import MARK_QUESTIONS
from vipllava_jax.demo.questions import Fact, Question, View
from vipllava_jax.demo.scene_questions import SCENE_QUESTIONS, TWO_MARK_QUESTIONS

TYPES = (*MARK_QUESTIONS, *TWO_MARK_QUESTIONS, *SCENE_QUESTIONS, 'words')
WEIGHTS = {  # the other types have weight 1; types that are harder to learn occur more often
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


def choose_questions(rng: Random, view: View, count: int, types: Sequence[str] = TYPES) -> list[Question]:
    """At most `count` random questions about a view; no answer reveals the answer to another question."""
    makers = {
        **SCENE_QUESTIONS,
        **(MARK_QUESTIONS if view.marks else {}),
        **(TWO_MARK_QUESTIONS if len(view.marks) == 2 else {}),
    }
    names = [name for name in makers if name in types]
    weights = [WEIGHTS.get(name, 1.0) for name in names]
    questions: list[Question] = []
    known: set[Fact] = set()
    for name in rng.choices(names, weights, k=6 * count) if names else ():
        question = makers[name](rng, view)
        if question and not question.facts & known:
            questions.append(question)
            known |= question.facts
        if len(questions) == count:
            break
    return questions


def with_instruction(rng: Random, question: Question) -> tuple[str, str]:
    """The question's text, sometimes with an instruction on the form of the answer, and that answer."""
    draw = rng.random()
    if draw < 0.15:
        return question.text + rng.choice(SENTENCE), question.sentence
    return question.text + (rng.choice(SHORT) if draw < 0.25 else ''), question.answer
