"""The format that an answer must have, and its grammar in the notation of llguidance."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vipllava_jax.messages import brief

KINDS = ('json_schema', 'json_object', 'regex', 'choice')
MAX_SCHEMA = 32_768  # characters of its JSON
MAX_REGEX = 4096  # characters
MAX_CHOICES = 1000
MAX_CHOICE_CHARACTERS = 32_768  # of all choices together
MAX_MULTIPLE = 10_000  # compiling a rule takes time in proportion to the multiple that it divides by

# After the colon of a prompt the most likely tokens begin with a space, which the text of an answer drops.
# Without `no_forcing`, some tokens would be refused that are another way to spell an allowed text.
START = '%llguidance {"no_forcing": true}\nstart: " "? '
# Compact JSON, with at most one space after a comma or colon, so that no answer runs on with white space.
SPACING = {'whitespace_flexible': False, 'item_separator': ', ?', 'key_separator': ': ?'}
# The text of an answer neither begins nor ends with white space, of which Python knows more than regex.
BLANK = r'\s\x1c-\x1f'
TRIMMED = rf'([^{BLANK}]((?s:.)*[^{BLANK}])?)?'


@dataclass(frozen=True)
class AnswerFormat:
    """A format that an answer must have: of a kind, with a value; nothing is checked yet.

    'json_schema' has a JSON schema as a dict, 'regex' a regular expression for the whole answer, and 'choice'
    the texts of which the answer is one. 'json_object' is any JSON object, and has no value.
    """

    kind: str
    value: Any = None


def grammar_of(answer_format: AnswerFormat) -> str:
    """The grammar of a format; ValueError or TypeError for an invalid or too large one."""
    kind, value = answer_format.kind, answer_format.value
    if kind == 'json_object':
        return _json_grammar({'type': 'object'})
    if kind == 'json_schema':
        return _json_grammar(_checked_schema(value))
    if kind == 'regex':
        return f'{START}TEXT\nTEXT: /(?:{_between_slashes(_checked_regex(value))})/ & /{TRIMMED}/'
    if kind == 'choice':
        return START + '( ' + ' | '.join(map(_quoted, _checked_choices(value))) + ' )'
    raise ValueError(f'the kind of an answer format is {brief(kind)}: expected one of {", ".join(KINDS)}')


def _json_grammar(schema: dict[str, Any]) -> str:
    return f'{START}value\nvalue: %json {json.dumps({**schema, "x-guidance": SPACING})}'


def _checked_schema(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise TypeError(f'the JSON schema is {brief(schema)}: expected an object')
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ValueError('the JSON schema is not JSON, or is nested too deeply') from None
    if size > MAX_SCHEMA:
        raise ValueError(f'the JSON schema has {size} characters, expected at most {MAX_SCHEMA}: shorten it')
    if math.prod({_multiple(number) for number in _multiples(schema)}) > MAX_MULTIPLE:
        raise ValueError(
            'multipleOf: the numbers in the JSON schema are too large, or too many: their product may be '
            f'{MAX_MULTIPLE}, without decimal points'
        )
    return schema


def _multiples(schema: Any) -> Iterator[float]:
    """The numbers of all `multipleOf` in a schema."""
    if isinstance(schema, dict):
        number = schema.get('multipleOf')
        if isinstance(number, int | float):
            yield number
    if isinstance(schema, dict | list | tuple):
        for part in schema.values() if isinstance(schema, dict) else schema:
            yield from _multiples(part)


def _multiple(number: float) -> int:
    """The digits of a number as a whole number: 25 for 0.25."""
    digits = Decimal(str(number))
    exponent = int(digits.as_tuple().exponent)
    return int(abs(digits.scaleb(-exponent) if exponent < 0 else digits))


def _checked_regex(regex: Any) -> str:
    if not isinstance(regex, str) or not regex:
        raise TypeError(f'the regular expression is {brief(regex)}: expected a text')
    if len(regex) > MAX_REGEX:
        raise ValueError(
            f'the regular expression has {len(regex)} characters, expected at most {MAX_REGEX}: shorten it'
        )
    if (len(regex) - len(regex.rstrip('\\'))) % 2:
        raise ValueError('the regular expression ends with a backslash, after which a character is missing')
    _check_unicode(regex, 'the regular expression')
    return regex


def _between_slashes(regex: str) -> str:
    """A regular expression as it is written between slashes."""
    return re.sub(r'\\.|/', lambda match: r'\/' if match[0] == '/' else match[0], regex, flags=re.DOTALL)


def _checked_choices(choices: Any) -> Sequence[str]:
    if not isinstance(choices, list | tuple) or not all(isinstance(text, str) for text in choices):
        raise TypeError(f'the choices are {brief(choices)}: expected a list of texts')
    size = sum(map(len, choices))
    if not 0 < len(choices) <= MAX_CHOICES or size > MAX_CHOICE_CHARACTERS:
        raise ValueError(
            f'there are {len(choices)} choices of {size} characters in all: expected 1 to {MAX_CHOICES} of '
            f'at most {MAX_CHOICE_CHARACTERS}'
        )
    for text in choices:
        if not text or text != text.strip():
            raise ValueError(f'a choice is {brief(text)}: expected text without white space at its ends')
        _check_unicode(text, 'a choice')
    return choices


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f'{name} is not valid Unicode: {brief(text)}') from None


def _quoted(text: str) -> str:
    """A text in double quotes, as in JSON."""
    return json.dumps(text, ensure_ascii=False).replace('\x7f', r'\u007f')
