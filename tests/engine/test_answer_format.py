"""The grammars of formats, and what is refused."""

import pytest

from vipllava_jax.engine.answer_format import MAX_SCHEMA, AnswerFormat, grammar_of

DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ('answer_format', 'message'),
    [
        (AnswerFormat('xml'), "the kind of an answer format is 'xml': expected one of json_schema"),
        (AnswerFormat('json_schema'), 'the JSON schema is None: expected an object'),
        (AnswerFormat('json_schema', {'const': {1, 2}}), 'is not JSON'),
        (AnswerFormat('json_schema', {'const': float('nan')}), 'is not JSON'),
        (AnswerFormat('json_schema', {'const': DEEP}), 'nested too deeply'),
        (AnswerFormat('json_schema', {'const': 'a' * MAX_SCHEMA}), 'has 32781 characters'),
        (AnswerFormat('json_schema', {'multipleOf': 1_234_567}), 'multipleOf'),
        (AnswerFormat('json_schema', {'allOf': [{'multipleOf': 101}, {'multipleOf': 10.3}]}), 'multipleOf'),
        (AnswerFormat('json_schema', {'multipleOf': 1e300}), 'multipleOf'),
        (AnswerFormat('regex', ''), "the regular expression is ''"),
        (AnswerFormat('regex', 'a\\\\\\'), 'ends with a backslash'),
        (AnswerFormat('regex', 'a' * 5000), 'has 5000 characters'),
        (AnswerFormat('regex', '\ud800'), 'not valid Unicode'),
        (AnswerFormat('choice', 'yes'), 'expected a list of texts'),
        (AnswerFormat('choice', ('yes', 1)), 'expected a list of texts'),
        (AnswerFormat('choice', ()), 'there are 0 choices'),
        (AnswerFormat('choice', ('yes ',)), "a choice is 'yes '"),
        (AnswerFormat('choice', ('a\ud800',)), 'not valid Unicode'),
    ],
)
def test_invalid_formats_are_refused(answer_format, message):
    with pytest.raises((ValueError, TypeError), match=message):
        grammar_of(answer_format)


def test_options_in_a_schema_do_not_replace_our_own():
    grammar = grammar_of(AnswerFormat('json_schema', {'x-guidance': {'whitespace_flexible': True}}))
    assert '"whitespace_flexible": false' in grammar
    assert 'true' not in grammar.splitlines()[-1]


def test_few_multiples_are_allowed_however_often():
    numbers = [5, 0.25, 0.01, 10, 5, 0.5] * 10
    schema = {'properties': {f'p{n}': {'multipleOf': number} for n, number in enumerate(numbers)}}
    assert grammar_of(AnswerFormat('json_schema', schema))
    named = {'properties': {'multipleOf': {'type': 'integer'}}}
    assert grammar_of(AnswerFormat('json_schema', named))
