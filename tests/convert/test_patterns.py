"""Untrusted patterns match like Python's, in bounded time, or raise an error that says what is wrong."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipllava_jax.convert.patterns import Pattern, PatternError

PATTERNS = [
    *(
        '',
        'a',
        'abc',
        'a.c',
        r'a\.c',
        'a|b',
        '(a|b)c',
        'a*',
        'a+',
        'a?',
        '(ab)*',
        '(a|b)+c?',
        '[ab]+',
        '[^a]',
    ),
    *('a{2}', 'a{1,2}', 'a{2,}', '(ab){0,2}', r'\d+', r'\w\W', '^a$', '^', '$', 'a$b', '(^a|b)', '(?:a|b)*'),
    *(
        '(a|)b',
        '()',
        '(a*)*',
        '(a+)+b',
        '(a|a)*b',
        'a*?b',
        'a+?',
        'a{1,2}?',
        '[]a]',
        '[^]]',
        '[a-c.]+',
        r'[\d.]',
    ),
    *('a{', 'a{,2}', 'a{x}', '.*a.*', r'.*\.(a|b)', '((a|b)c){2}'),
]
TEXTS = st.text('abc.1]{,2}x ', max_size=8)


@given(st.sampled_from(PATTERNS), TEXTS)
@settings(max_examples=1500, deadline=None)
def test_patterns_match_as_in_python(pattern, text):
    assert Pattern(pattern).fullmatch(text) == bool(re.fullmatch(pattern, text))


@given(
    st.recursive(
        st.sampled_from(['a', 'b', '.', '[ab]', '']),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(''.join),
            st.tuples(inner, inner).map(lambda two: f'({two[0]}|{two[1]})'),
            st.tuples(inner, st.sampled_from(['*', '+', '?', '{2}', '{1,3}'])).map(
                lambda two: f'({two[0]}){two[1]}'
            ),
        ),
        max_leaves=6,
    ),
    st.text('ab', max_size=5),
)
@settings(max_examples=500, deadline=None)
def test_generated_patterns_match_as_in_python(pattern, text):
    assert Pattern(pattern).fullmatch(text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [
        ('(', 'missing'),
        ('q_proj(', 'missing'),
        (')', 'unbalanced'),
        ('a)b', 'unbalanced'),
        ('*', 'nothing to repeat'),
        ('(|*a)', 'nothing to repeat'),
        ('a**', 'multiple repeat'),
        ('a{2}{3}', 'multiple repeat'),
        ('a*+', 'multiple repeat'),
        ('a{3,2}', 'min repeat'),
        ('[a', 'unterminated'),
        ('[b-a]', 'bad character range'),
        ('\\', 'not supported'),
        *(
            (p, 'not supported')
            for p in (r'\1', r'\b', r'\A', '(?=a)', '(?!a)', '(?<=a)', '(?P<x>a)', '(?i)a')
        ),
        ('a' * 1001, 'the pattern is too long: 1001 characters'),
        ('(' * 500 + ')' * 500, 'deep'),
        ('a{9999}', 'repeats too much'),
        ('((a{99}){99}){99}', 'repeats too much'),
        ('(((a{0,9}){0,9}){0,9}){0,9}', 'repeats too much'),
    ],
)
def test_unsupported_patterns_are_refused(pattern, expected):
    began = time.thread_time()
    with pytest.raises(PatternError, match=expected):
        Pattern(pattern)
    assert time.thread_time() - began < 1


@pytest.mark.parametrize(
    'pattern', ['(a+)+b', '(a|a)*b', '(a*)*b', '(.*)*b', '.*.*.*.*.*.*.*.*b', '(a?){90}a{90}b', '(a|aa)+b']
)
def test_patterns_take_linear_time(pattern):
    began = time.thread_time()
    assert not Pattern(pattern).fullmatch('a' * 1000)
    assert time.thread_time() - began < 2
