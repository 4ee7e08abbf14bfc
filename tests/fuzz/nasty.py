"""Values that are likely to break readers, and files in which something is replaced by such a value."""

import copy
import json
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


def words(table: str) -> tuple[str, ...]:
    """The entries of a table, two or more spaces between them."""
    return tuple(re.split(r'\s{2,}', table.strip()))


class Raw(str):
    """A piece of a JSON file that json.dumps would not write."""


INTEGERS = (
    *(0, -1, 1, 2, 7, 255, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**400),
    *(-(2**31), -(2**63), -(10**400)),
)
REALS = (0.5, -0.0, 1e-320, 1e308, -1e308, float('nan'), float('inf'), float('-inf'))
TEXTS = (
    *words("""
        x  é  😀  %s%n  {}  {0.__class__}  <image>  <s>  (a+)+$  1e999  nan  .  ../../etc/passwd  /etc/passwd
        /dev/zero  no-such-file
    """),
    *('', ' ', 'a\nb', '\x00', '\x1b[2J\x1b]0;title\x07', '\u202eabc', '\ud800', '\uffff', 'file\x1b[31m'),
    *('x' * 100_000, '(' * 5000),
)
STRUCTURES = ([], {}, [[]], [None], {'': None}, {'type': 'x'}, [0] * 1000, [1e308] * 3, [float('nan')] * 3)
RAW = (
    *words("""  1e999  -1e999  "\\ud800"  nul  1 2  'a'  {"a": 1, "a": 2}  """),
    *('', '9' * 5000, '[' * 6000 + ']' * 6000, '{"a":' * 6000 + '1' + '}' * 6000),
)
VALUES = (None, True, False, *INTEGERS, *REALS, *TEXTS, *STRUCTURES, *map(Raw, RAW))


def text(value: Any) -> str:
    """JSON text, in which raw pieces are inserted unchanged."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return '{' + ', '.join(f'{json.dumps(key)}: {text(part)}' for key, part in value.items()) + '}'
    if isinstance(value, list):
        return '[' + ', '.join(map(text, value)) + ']'
    return json.dumps(value)


@st.composite
def json_files(draw: Draw, valid: Any, extra: Sequence[Any] = (), max_changes: int = 3) -> bytes:
    """A JSON file with up to `most` nodes changed, and sometimes damaged bytes."""
    data = [copy.deepcopy(valid)]  # in a list, so that the root can be replaced, too
    for _ in range(draw(st.integers(1, max_changes))):
        change(draw, data, st.sampled_from((*VALUES, *extra, *extra)))
    file = text(data[0] if data else Raw('')).encode()
    return draw(damaged(file)) if draw(st.integers(0, 9)) == 0 else file


def change(draw: Draw, data: list[Any], values: st.SearchStrategy[Any]) -> None:
    """Replaces, removes, duplicates, moves or adds a node."""
    node, key = pick_node(draw, data)
    if key is None:
        return
    change_type = draw(st.sampled_from(('replace', 'replace', 'replace', 'remove', 'double', 'move', 'add')))
    if change_type == 'remove':
        del node[key]
    elif change_type == 'double' and isinstance(node, dict):
        node[key] = Raw(f'{text(node[key])}, {json.dumps(key)}: {text(draw(values))}')
    elif change_type == 'double':
        node[:] = node[:1000] * 3
    elif change_type == 'move':
        other, name = pick_node(draw, data)
        node[key] = copy.deepcopy(other[name]) if name is not None else None
    elif change_type == 'add' and isinstance(node, dict):
        node[draw(st.sampled_from(TEXTS))] = copy.deepcopy(draw(values))
    else:
        node[key] = copy.deepcopy(draw(values))  # a copy, because its content may be changed next


def pick_node(draw: Draw, data: list[Any]) -> tuple[Any, Any]:
    """A random node as its container and key; shallow ones, which readers look at, are more likely."""
    node: Any = data
    while node:
        key = (
            draw(st.sampled_from([*node])) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
        )
        inner = node[key]
        leaf = not isinstance(inner, (dict, list)) or not inner
        if leaf or (node is not data and draw(st.integers(0, 3)) == 0):
            return node, key
        node = inner
    return node, None


@st.composite
def damaged(draw: Draw, data: bytes) -> bytes:
    """Bytes, some of which are flipped, cut off, inserted, repeated or overwritten."""
    rng = draw(st.randoms(use_true_random=True))  # hypothesis prefers small integers
    for _ in range(draw(st.integers(1, 3))):
        at = rng.randrange(len(data) + 1)
        if draw(st.integers(0, 3)) == 0:  # most of what determines a reader's behaviour is at one of the ends
            at = min(at, rng.randrange(80)) if rng.random() < 0.7 else max(at, len(data) - rng.randrange(80))
        size = draw(st.sampled_from((1, 2, 4, 8, 64, 1000)))
        change_type = draw(
            st.sampled_from(('flip', 'flip', 'cut', 'remove', 'repeat', 'zero', 'number', 'insert'))
        )
        if change_type == 'flip' and at < len(data):
            middle, size = bytes([data[at] ^ 1 << draw(st.integers(0, 7))]), 1
        elif change_type == 'cut':
            middle, size = b'', len(data)
        elif change_type == 'repeat':
            middle = data[at : at + size] * 3
        elif change_type == 'zero':
            middle = bytes(size)
        elif change_type == 'number':
            form, number = draw(st.sampled_from(NUMBERS))
            middle = struct.pack(form, number)
            size = len(middle)
        elif change_type == 'insert':
            middle, size = draw(st.binary(max_size=20)), 0
        else:
            middle = b''
        data = data[:at] + middle + data[at + size :]
    return data


NUMBERS = [
    (order + form, number)
    for order in '<>'
    for form, bits in (('B', 8), ('H', 16), ('I', 32), ('Q', 64))
    for number in (0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1)
]
