"""Generates marks as text, and TOML files."""

import json

from hypothesis import strategies as st

from tests.fuzz.nasty import Draw, words
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS
from vipllava_jax.training.settings import KEYS

NUMBERS = (
    *words('0  1  0.5  10  59  60  89  90  -1  1e308  1e999  -0  nan  inf  1_0  0x9  ٣  1e-320  65535'),
    *('9' * 400, ' 7 ', '', 'x', '\x1b[31m', '9' * 5000),
)
PLACES = words("""
    10,10,50,40  0.1,0.1,0.5,0.6  0,0,1,1  10,10,50,10,30,40  30,20  0.3,0.3  0,0,90,60  10,10,50,40+30,20
    1,1,9,1,9,9,1,9+20,20,29,20,29,29  10,10,50,40+10,10,50,10,30,40
""")
SHAPES = (*PREPOSITIONS, *PREPOSITIONS, 'mask-contour', 'MASK', '', 'x\x1b[2J', 'rectangle ')
FIELDS = words(
    'alpha={}  width={}  width={}  units=pixel  units=relative  units={}  color={}  {}  #{}  x=y=z'
)
FIRST = ('', '', '', '', '1/', '2/', '0/', '-1/', '٣/', '/', '9' * 5000 + '/')
SIZES = ((90, 60), (90, 60), (1, 1), (1, 60_000), (60_000, 1), (3, 2), (4000, 30), (1500, 1500))


@st.composite
def marks(draw: Draw) -> bytes:
    """A mark as text, with numbers that may be replaced, and the size of its picture."""
    numbers = draw(st.sampled_from(PLACES)).split(',')
    if draw(st.booleans()):
        numbers[draw(st.integers(0, len(numbers) - 1))] = draw(st.sampled_from(NUMBERS))
    if draw(st.integers(0, 9)) == 0:
        numbers *= 100
    fields = [
        draw(st.sampled_from(FIELDS)).format(draw(st.sampled_from(NUMBERS)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    colors = draw(st.lists(st.sampled_from((*COLORS, '#12ab00', '#٣', 'pink')), max_size=1))
    mark = ':'.join(
        [draw(st.sampled_from(FIRST)) + draw(st.sampled_from(SHAPES)), ','.join(numbers), *colors, *fields]
    )
    seed = draw(st.sampled_from((None, 0, 1, 2**40)))
    return json.dumps({'mark': mark, 'size': draw(st.sampled_from(SIZES)), 'seed': seed}).encode()


TOML = (
    *words(r"""
        1  0  -1  1.5  1e400  nan  inf  -inf  true  1979-05-27  0x_1  ""  "x"  '\ud800'  "\ud800"  "no/such"
        "\u001b[31m"  "a\u0000b"  "rows.json"  ["rows.json", "rows.jsonl"]  ["x"]  [""]  []
        [1, "x"]  ["lora"]  {}  {a = 1}
    """),
    *('', '"\x1b[2J"', '9' * 30, '9' * 5000, '[' * 3000 + ']' * 3000, '"' + 'x' * 99_999 + '"'),
    '["rows.json"' + ', "rows.json"' * 300 + ']',
)
LINES = words('[table]  [[a]]  a.b  "x\\u001b"  é  #')
ENDS = (('utf-8', '\n'), ('utf-8-sig', '\n'), ('utf-16', '\n'), ('utf-8', '\r\n'), ('utf-8', '\0'))


@st.composite
def toml_files(draw: Draw, valid: str) -> bytes:
    """A TOML file with lines inserted, removed or changed."""
    lines = valid.splitlines()
    names = st.one_of(st.sampled_from([*KEYS]), st.sampled_from((*lines, *LINES)))
    for _ in range(draw(st.integers(1, 3))):
        line = f'{draw(names)} = {draw(st.sampled_from(TOML))}'
        at = draw(st.integers(0, len(lines)))
        lines[at : at + draw(st.integers(0, 1))] = [line]
    encoding, end = draw(st.sampled_from(ENDS))
    return end.join(lines).encode(encoding, 'surrogatepass')
