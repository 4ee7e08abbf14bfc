"""Scores, compared with counts by hand, and intervals, compared with published ones."""

from pathlib import Path

import pytest

from vipllava_jax.evaluation.cases import GENERIC, TASKS, Case, Cases
from vipllava_jax.evaluation.scores import Score, count_right, format_table, is_right, wilson


def case(*accepted, groups=(), sets=(), task=GENERIC):
    return Case('x', 'x', task, (), (Path('a'),), ((),), accepted, groups, sets)


@pytest.mark.parametrize(
    ('answer', 'accepted', 'expected'),
    [
        ('A', ('A',), True),
        (' a\n', ('A',), True),
        ('A.', ('A',), False),
        ('', ('A',), False),
        ('Red Fish', ('blue', 'red fish'), True),
        ('red  fish', ('red fish',), False),
        ('STRASSE', ('straße',), True),
    ],
)
def test_an_answer_is_right_if_it_equals_an_accepted_one_ignoring_case(answer, accepted, expected):
    assert is_right(answer, accepted) is expected


@pytest.mark.parametrize(
    ('correct', 'n', 'low', 'high'),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_intervals_equal_published_wilson_intervals(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_scores_equal_counts_by_hand():
    cases = Cases(
        (
            case('red', groups=(('color',), ('arrow', 'point')), sets=(('pair', '1'),)),
            case('fish', groups=(('kind',), ('-',)), sets=(('pair', '1'),)),
            case('fish', groups=(('kind',), ('arrow',)), sets=(('pair', '2'),)),
            case('fish', groups=(('kind',), ('arrow',)), sets=(('pair', '3'),)),  # not answered
            case('fish', groups=(('kind',), ('arrow',)), sets=(('pair', '3'),)),
            case(groups=(('kind',), ('arrow',))),  # without accepted answers
        ),
        by=('type', 'shape'),
    )
    answers = {0: 'Red', 1: 'a fish', 2: 'fish', 4: 'bird', 5: 'fish'}
    assert count_right(cases, answers) == [
        ('rows', 4, 2),
        ('pair', 2, 1),
        ('type color', 1, 1),
        ('type kind', 3, 1),
        ('shape -', 1, 0),
        ('shape arrow', 3, 2),
        ('shape point', 1, 1),
    ]


def test_a_vcr_set_is_right_if_its_answer_and_its_reason_are():
    answers = [case('A', task=TASKS['vcr'], sets=(('VCR Q->AR', str(n)),)) for n in range(3)]
    reasons = [answer._replace(task=answer.task._replace(name='VCR QA->R')) for answer in answers]
    scores = count_right(Cases((*answers, *reasons)), {0: 'A', 1: 'A', 2: 'B', 3: 'A', 4: 'C', 5: 'A'})
    assert scores == [('VCR Q->A', 3, 2), ('VCR QA->R', 3, 2), ('VCR Q->AR', 3, 1)]


def test_the_table_has_one_line_per_score():
    assert format_table([Score('rows', 263, 81), Score('type a', 20, 0)]).splitlines() == [
        '              n  correct  accuracy  95 % interval',
        'rows        263       81     30.8%  25.5% to 36.6%',
        'type a       20        0      0.0%  0.0% to 16.1%',
    ]
