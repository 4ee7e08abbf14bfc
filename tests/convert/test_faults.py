"""Messages that list many names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.convert.faults import described, first, ranges


@pytest.mark.parametrize(
    ('faults', 'expected'),
    [
        ({}, ''),
        ({'missing': []}, ''),
        ({'missing': ['b', 'a'], 'unknown': []}, 'missing: a, b'),
        ({'missing': ['b'], 'unknown': ['c']}, 'missing: b; unknown: c'),
        ({'missing': [str(i) for i in range(10, 19)]}, 'missing: 10, 11, 12, 13, 14 and 4 more'),
        ({'missing': ['a\x1b[0m\nb']}, 'missing: a\\x1b[0m b'),
    ],
)
def test_faults_are_described_in_one_line(faults, expected):
    assert described(faults) == expected


def test_the_first_names_are_listed_with_the_number_of_others():
    assert first({'b', 'a'}) == 'a, b'


@given(st.dictionaries(st.text(max_size=60), st.lists(st.text(max_size=2000), max_size=30), max_size=6))
def test_any_names_are_short_and_printable(faults):
    assert len(described(faults)) < 1000
    assert described({'x': faults.get('x', ['\x00' * 900])}).isprintable()


@pytest.mark.parametrize(
    ('numbers', 'expected'),
    [
        ([3], ['a.layers.3.w']),
        ([2, 0, 1], ['a.layers.{0-2}.w']),
        ([2, 0], ['a.layers.{0,2}.w']),
        ([0, 0], ['a.layers.0.w']),
        (range(0, 40, 2), ['a.layers.{0,2,4,6,8,10,12,14,…}.w']),
        (['01', 1], ['a.layers.01.w', 'a.layers.1.w']),
        (['9' * 5000], [f'a.layers.{"9" * 5000}.w']),
    ],
)
def test_numbers_of_layers_are_joined_to_ranges(numbers, expected):
    assert ranges(f'a.layers.{number}.w' for number in numbers) == expected


def test_names_with_braces_are_matched():
    assert ranges(['{}', 'a.{}.layers.0.w', 'a.{}.layers.1.w']) == ['{}', 'a.{}.layers.{0-1}.w']
