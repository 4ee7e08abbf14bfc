"""Text for a terminal is printable and bounded."""

import pytest

from vipllava_jax import messages
from vipllava_jax.messages import (
    CheckpointError,
    brief,
    describe_changes,
    duration,
    printable,
    safe_answer,
)


def test_messages_are_one_printable_line_of_bounded_length():
    text = printable('a\x1b[31mred\x07 b\n\tc \u202e d \udc80 \x9b ' + 'x' * 10**6 + ' the end: do this')
    assert text.isprintable()
    assert len(text) <= messages.MESSAGE
    assert text.startswith(r'a\x1b[31mred\x07 b c \u202e d \udc80 \x9b x')
    assert text.endswith('the end: do this')
    assert printable('naïve 猫.png') == 'naïve 猫.png'
    assert str(CheckpointError('one\ntwo\x1b')) == r'one two\x1b'


def test_answers_keep_their_text_but_no_terminal_commands():
    assert safe_answer('a\n\tb 猫 👩‍🚀\x1b[2J\x9b\x00\u202e') == 'a\n\tb 猫 👩‍🚀\\x1b[2J\\x9b\\x00\\u202e'


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (10**5000, 'a whole number of 5001 digits'),
        ('x\x1b' * 10**6, "'x"),
        ([[[1]]], 'a list of 1 entries'),
        ({str(i): i for i in range(10**5)}, 'an object of 100000 entries'),
        ([1, 'a', None], "[1, 'a', None]"),
        ({'a': 1}, "{'a': 1}"),
        (float('nan'), 'nan'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_described_briefly(value, expected):
    assert brief(value).startswith(expected)
    assert len(brief(value)) < 100
    assert brief(value).isprintable()


@pytest.mark.parametrize(('seconds', 'text'), [(0.4, '0:00'), (61, '1:01'), (3725, '1:02:05')])
def test_durations_have_hours_only_if_needed(seconds, text):
    assert duration(seconds) == text


def test_changed_settings_are_described_with_both_values():
    before = {'seed': 0, 'fit': None, 'parts': ['a', 'b'], 'data': 'x', 'same': 1}
    now = {'seed': 7, 'fit': 'pad', 'parts': ['a'], 'data': 'y', 'same': 1}
    assert describe_changes(before, now) == (
        'seed was 0 and is 7, fit was not given and is pad, parts was a b and is a, other rows in the data'
    )
    assert describe_changes(now, now) == ''
    many = {str(n): n for n in range(9)}
    assert describe_changes({}, many).endswith('5 was not given and is 5, and 3 more')
