"""Marks, TOML files and command lines."""

import json
from importlib import import_module
from typing import Any

import click
from hypothesis import strategies as st

from tests.fuzz.nasty import TEXTS, Draw
from vipllava_jax.cli import VERBS
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS

NUMBERS = (
    '0',
    '1',
    '0.5',
    '10',
    '59',
    '60',
    '89',
    '90',
    '-1',
    '1e308',
    '1e999',
    '-0',
    'nan',
    'inf',
    '1_0',
    '0x9',
    '٣',
)
NUMBERS += ('9' * 400, '1e-320', '1000000', ' 7 ', '', 'x', '\x1b[31m', '65535', '99999')
SIZES = ((90, 60), (1, 1), (1, 60_000), (60_000, 1), (3, 2), (4000, 30), (1500, 1500))
SHAPES = (*PREPOSITIONS, 'mask-contour', 'MASK', '', 'x\x1b[2J', 'rectangle ')
FIELDS = (
    'alpha={}',
    'width={}',
    'units=pixel',
    'units=relative',
    'units={}',
    'color={}',
    '{}',
    '#{}',
    'x=y=z',
)


@st.composite
def marks(draw: Draw) -> bytes:
    """A mark as a line of text, and the size of the picture on which it is to be drawn."""
    numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(0, 60).map(str), st.integers(0, 60).map(str))
    counts = st.sampled_from((2, 4, 4, 4, 6, 8, 3, 0, 200))
    places = [
        draw(st.lists(numbers, min_size=n, max_size=n))
        for n in draw(st.lists(counts, min_size=1, max_size=3))
    ]
    colors = draw(st.lists(st.sampled_from((*COLORS, '#12ab00', '#٣', 'pink')), max_size=2))
    fields = [draw(st.sampled_from(FIELDS)).format(draw(numbers)) for _ in range(draw(st.integers(0, 3)))]
    first = draw(st.sampled_from(('', '', '', '1/', '2/', '0/', '-1/', '٣/', '9' * 5000 + '/', '/')))
    mark = ':'.join([draw(st.sampled_from(SHAPES)), '+'.join(map(','.join, places)), *colors, *fields])
    seed = draw(st.sampled_from((None, 0, 1, 2**40)))
    return json.dumps({'mark': first + mark, 'size': draw(st.sampled_from(SIZES)), 'seed': seed}).encode()


TOML = (
    *(
        '1',
        '0',
        '-1',
        '1e400',
        'nan',
        'inf',
        '-inf',
        '9' * 30,
        '9' * 5000,
        '1.5',
        'true',
        '1979-05-27',
        '0x_1',
    ),
    *(
        '""',
        '"x"',
        "'\\ud800'",
        '"\\ud800"',
        '"\\u001b[31m"',
        '"no/such"',
        '"rows.json"',
        '"\x1b[2J"',
        '"a\\u0000b"',
    ),
    *(
        '[]',
        '[1, "x"]',
        '["lora"]',
        '["rows.json", "rows.jsonl"]',
        '[' * 3000 + ']' * 3000,
        '{}',
        '{a = 1}',
        '',
        '"""',
    ),
    *('["x"]', '[""]', '"' + 'x' * 99_999 + '"', '["rows.json"' + ', "rows.json"' * 300 + ']'),
)


@st.composite
def toml_files(draw: Draw, valid: str, keys: tuple[str, ...]) -> bytes:
    """A TOML file with lines that are not of it, put in, left out or changed."""
    lines = valid.splitlines()
    names = st.one_of(
        st.sampled_from(keys), st.sampled_from((*lines, '[table]', '[[a]]', 'a.b', '"x\\u001b"', 'é', '#'))
    )
    for _ in range(draw(st.integers(1, 3))):
        line = f'{draw(names)} = {draw(st.sampled_from(TOML))}'
        at = draw(st.integers(0, len(lines)))
        lines[at : at + draw(st.integers(0, 1))] = [line]
    ends = draw(
        st.sampled_from(
            (('utf-8', '\n'), ('utf-8-sig', '\n'), ('utf-16', '\n'), ('utf-8', '\r\n'), ('utf-8', '\0'))
        )
    )
    return ends[1].join(lines).encode(ends[0], 'surrogatepass')


WORDS = tuple(text for text in TEXTS if '\0' not in text and '\ud800' not in text and '/' not in text)
WORDS += (
    '\udcff',
    '-',
    '--',
    '-x',
    'rows.json',
    'rows.jsonl',
    'photo.png',
    'fifo',
    'out.png',
    'out',
    'run.toml',
)
WORDS += (
    'rectangle:10,10,50,40:red',
    '2/point:1,1',
    'What is {mark}?',
    '{mark9}',
    'link.png',
    'model',
    'type',
)
BAD = ('-1', 'x', '', 'nan', '1e400', '9' * 5000, '0x1', '\x1b[31m', '-' + '9' * 30)
WHOLE = ('0', '1', '2', '100', '2147483647', '2147483648', '9' * 30, '1.0', *BAD)
LONG = ('train', 'bench', 'demo')  # their lines have something bad in them, as they would take minutes
LINES = {
    'ask': (
        'What is {mark}?',
        '--model',
        'model',
        '--image',
        'photo.png',
        '--mark',
        'rectangle:10,10,50,40:red',
    ),
    'draw': ('photo.png', 'out.png', '--mark', 'rectangle:10,10,50,40:red'),
    'convert': ('model', 'out'),
    'eval': ('--model', 'model', '--data', 'rows.jsonl', '--batch', '2', '--max-new-tokens', '2'),
    'info': ('--model', 'model'),
    'train': ('run.toml',),
    'bench': ('--model', 'model', '--what', 'load'),
    'demo': ('--output', 'out.png'),
}


@st.composite
def commands(draw: Draw) -> dict[str, bytes]:
    """The arguments of a verb that are as they should be, with others put in, and options of all its own."""
    verb = draw(st.sampled_from([*VERBS]))
    line = [*LINES[verb]]
    options = [
        o
        for o in getattr(import_module(f'vipllava_jax.cli.{verb}'), verb).params
        if isinstance(o, click.Option)
    ]
    numbers = [option for option in options if not _is_text(option)]
    bad = draw(st.sampled_from(numbers)) if verb in LONG else None
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line)))
        line[at : at + draw(st.integers(0, 1))] = [draw(st.sampled_from(WORDS))]
    for option in draw(st.lists(st.sampled_from(options), max_size=3, unique_by=lambda option: option.name)):
        if option is not bad:
            line += _given(draw, option, WHOLE)
    if verb == 'ask' and draw(st.booleans()):
        line += ['--max-new-tokens', '2']
    if bad:
        line += _given(draw, bad, BAD)
    stdin = draw(
        st.sampled_from(
            (b'What?', b'', b'\xff\xfeW\0', b'\xef\xbb\xbfWhat?', b'\xff', b'\x1b[2J', b'x' * 2**21)
        )
    )
    return {'arguments.json': json.dumps([verb, *line]).encode(), 'stdin': stdin}


def _is_text(option: click.Option) -> bool:
    return option.is_flag or option.type.name in ('text', 'path')


def _given(draw: Draw, option: click.Option, numbers: tuple[str, ...]) -> list[str]:
    name = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
    if option.is_flag:
        return [name]
    good = option.type.choices if isinstance(option.type, click.Choice) and numbers is not BAD else ()
    return [name, draw(st.sampled_from((*good, *(WORDS if _is_text(option) else numbers))))]


def arguments(data: bytes) -> list[Any]:
    return json.loads(data)
