"""Scores answers: accuracies with confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vipllava_jax.evaluation.cases import Cases
from vipllava_jax.messages import printable

MAX_NAME = 60  # characters of a group's name in the table, which may be a value of the data
Z = 1.959963984540054  # 95 % of a normal distribution lie within this number of standard deviations


class Score(NamedTuple):
    """How many of n are right; low and high are the ends of the 95 % interval of the accuracy."""

    group: str  # what is counted: a data set, or a field and its value, 'shape arrow'
    n: int
    correct: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of the accepted ones, ignoring case and surrounding white space."""
    return answer.strip().casefold() in {text.strip().casefold() for text in accepted}


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, 1927)."""
    p, zz = correct / n, Z * Z / n
    middle, half = p + zz / 2, Z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    low, high = (middle - half) / (1 + zz), (middle + half) / (1 + zz)
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)


def count_right(cases: Cases, answers: Mapping[int, str]) -> list[Score]:
    """Cases and their answers by number -> a score per data set, kind of set, and value of each field.

    A set counts once, if all its cases were answered; cases without accepted answers are not counted.
    """
    groups: dict[str, list[bool]] = {}
    fields: dict[tuple[int, str], list[bool]] = {}
    sets: dict[tuple[str, str], list[bool | None]] = {}
    for n, case in enumerate(cases.cases):
        if not case.accepted:
            continue
        right = is_right(answers[n], case.accepted) if n in answers else None
        for key in case.sets:
            sets.setdefault(key, []).append(right)
        if right is None:
            continue
        groups.setdefault(case.task.name, []).append(right)
        for field, values in enumerate(case.groups):
            for value in values:
                fields.setdefault((field, value), []).append(right)
    for (name, _), hits in sets.items():
        if None not in hits:
            groups.setdefault(name, []).append(all(hits))
    scores = [Score(name, len(hits), sum(hits)) for name, hits in groups.items()]
    by_name = {f'{cases.by[field]} {value}': hits for (field, value), hits in sorted(fields.items())}
    return scores + [Score(name, len(hits), sum(hits)) for name, hits in by_name.items()]


def format_table(scores: Sequence[Score]) -> str:
    """Scores as lines of text."""
    names = [printable(score.group, MAX_NAME) for score in scores]  # with values from the data
    width = max(map(len, names), default=0)
    lines = [f'{"":<{width}}  {"n":>7}  {"correct":>7}  accuracy  95 % interval']
    for name, score in zip(names, scores, strict=True):
        low, high = score.interval
        lines.append(
            f'{name:<{width}}  {score.n:>7}  {score.correct:>7}  {score.accuracy:>8.1%}  '
            f'{low:.1%} to {high:.1%}'
        )
    return '\n'.join(lines)
