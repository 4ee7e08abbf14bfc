"""Generates inputs: files that replace valid ones."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.convert.files import write_safetensors
from tests.fuzz import base
from tests.fuzz.commands import LINES, SLOW_COMMANDS
from tests.fuzz.nasty import Draw, damaged, json_files, text, words
from tests.fuzz.pngs import pngs
from tests.fuzz.templates import templates

Files = dict[str, bytes]  # contents by file name
Inputs = st.SearchStrategy[Files]
InputsOf = Callable[[Path], Inputs]  # given the folder of valid files

PATTERNS = ('(a+)+$', '(?<=a+)b', '[', '.{99999}', '(?:a{1000}){1000}', '\\p{Nope}')
GROWING = [{'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'aa' * 9}] * 40
STAGES = ('normalizer', 'pre_tokenizer', 'post_processor', 'decoder')
PARTS = (
    *({'type': 'Sequence', 'normalizers': GROWING}, {'type': 'Prepend', 'prepend': 'x' * 100_000}),
    *({'type': 'Strip', 'content': ' ', 'start': 2**40, 'stop': 0}, {'type': 'Truncate'}, {'type': 'NFKD'}),
    *({'type': type_name, 'prefix': '##'} for type_name in ('WordPiece', 'ByteLevel', 'BertNormalizer')),
    *({'type': 'Replace', 'pattern': {'Regex': pattern}, 'content': 'x'} for pattern in PATTERNS),
    *({'type': 'Split', 'pattern': {'Regex': p}, 'behavior': 'Isolated', 'invert': True} for p in PATTERNS),
    {'id': 10**9, 'content': '<image>', 'special': True, 'normalized': False},
)
SIZES = (
    *([0], [2**40, 2**40], [0, 2**63], [-1], [24, 24], [0, 2304]),
    *('F64', 'BF16', 'I64', 'F8_E4M3', 'F4', 'BOOL'),
)
PLACES = (
    *([1, 1, 9, 9], [[9, 9, 1, 1]], [[0, 0, 90, 60]], [[1e308] * 4], ['1239'], {'counts': 'x'}),
    *words("""
        <bbox>  <bbox9>  vcr-1  v7w-gpt4v  photo.png  no-such.png  mask:1,1,9,9  9/point:1,1
        rectangle:1,1,9,9:red:width=1e308
    """),
    *('<bbox' + '9' * 5000 + '>', '<image>' * 300),
)
CHANGES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    *(lambda x: x, lambda x: x.T, lambda x: x[:0], lambda x: x[None], lambda x: x.ravel()),
    *(lambda x: x.ravel()[0], lambda x: x.astype(np.float16), lambda x: x.astype(np.int8)),
    *(lambda x: x * np.float32('nan'), lambda x: np.concatenate([x, x])),
)
AROUND = ((b'[', b']'), (b'[', b''), (b'\xef\xbb\xbf[', b']'), (b'[', b'][{}]'), (b'[', b',]'))  # of a list
ENDS = (b'\n', b'', b'\n{"n": 1', b'\n\n', b'\r\n', b'\0\n')  # of a journal


def one_of(*inputs_of: InputsOf) -> InputsOf:
    return lambda folder: st.one_of([make(folder) for make in inputs_of])


def fixed(inputs: Inputs) -> InputsOf:
    return lambda folder: inputs


def named(name: str, contents: st.SearchStrategy[bytes]) -> Inputs:
    return contents.map(lambda data: {name: data})


def objects(*names: str, extra: Sequence[Any] = ()) -> InputsOf:
    """One of several JSON files, changed."""
    return lambda folder: st.one_of(
        [named(name, json_files(json.loads((folder / name).read_bytes()), extra)) for name in names]
    )


def binaries(pattern: str) -> InputsOf:
    """One of the files that match, its bytes damaged."""

    def make(folder: Path) -> Inputs:
        files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        return st.one_of([named(str(path.relative_to(folder)), damaged(path.read_bytes())) for path in files])

    return make


def safetensors(name: str) -> InputsOf:
    """A safetensors file whose header is changed, or its size, or any bytes."""

    @st.composite
    def files(draw: Draw, folder: Path) -> Files:
        header, body = base.split((folder / name).read_bytes())
        text = draw(json_files(header, SIZES, max_changes=2))
        sizes = st.sampled_from((0, 1, max(len(text) - 1, 0), len(text) + 1, 10**8, 2**31, 2**63, 2**64 - 1))
        size = len(text) if draw(st.integers(0, 4)) else draw(sizes)
        return {name: size.to_bytes(8, 'little') + text + body}

    return one_of(files, other_tensors(name), binaries(name))


def other_tensors(name: str) -> InputsOf:
    """A whole safetensors file in which tensors are missing, or have another name, type or shape."""

    @st.composite
    def files(draw: Draw, folder: Path) -> Files:
        tensors = base.tensors((folder / name).read_bytes())
        for _ in range(draw(st.integers(1, 3))):
            old = draw(st.sampled_from([*tensors]))
            tensor = tensors.pop(old)
            new = draw(
                st.sampled_from((old, old, '', 'x\x1b[31m', 'x' * 9999, old.replace('0', '1'), *tensors))
            )
            if draw(st.integers(0, 3)):
                tensors[new] = draw(st.sampled_from(CHANGES))(tensor)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / 'tensors'
            write_safetensors(path, tensors)
            return {name: path.read_bytes()}

    return files


def with_command(inputs_of: InputsOf) -> InputsOf:
    """Inputs together with a command line that reads them."""
    lines = [[verb, *line] for verb, line in LINES.items() if verb not in SLOW_COMMANDS]
    lines.append([*lines[0], '--template', 'checkpoint'])
    arguments = st.sampled_from([json.dumps(line).encode() for line in lines])
    return lambda folder: st.builds(
        lambda files, line: {**files, 'arguments.json': line}, inputs_of(folder), arguments
    )


@st.composite
def tokenizers(draw: Draw, folder: Path) -> Files:
    """A tokenizer.json in which one stage is replaced by another."""
    data = json.loads((folder / 'tokenizer.json').read_text())
    parts = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3))
    stage = draw(st.sampled_from(STAGES))
    sequence = {'type': 'Sequence', stage + 's': parts, 'pretokenizers': parts, 'processors': parts}
    data[stage] = parts[0] if draw(st.booleans()) else sequence
    return {'tokenizer.json': text(data).encode()}


def chat_templates() -> Inputs:
    """A chat template, as a file of its own or inside a JSON file."""
    file = templates().map(lambda text: {'chat_template.jinja': text.encode('utf-8', 'surrogatepass')})
    in_json = templates().map(
        lambda text: {'chat_template.json': json.dumps({'chat_template': text}).encode()}
    )
    return st.one_of(file, file, in_json)


def pictures(folder: Path) -> Inputs:
    """A picture in any format with damaged bytes, or a PNG file with unusual chunks."""
    contents = [damaged(path.read_bytes()) for path in sorted((folder / 'formats').iterdir())]
    return named('picture', st.one_of(pngs(), *contents))


@st.composite
def rows(draw: Draw) -> Files:
    """Rows as a JSON list or JSONL, some of them broken, or the file of boxes that a row names."""
    if draw(st.integers(0, 5)) == 0:
        return {'meta.json': draw(json_files(base.META, PLACES))}
    lines = [draw(json_files(row, PLACES)) for row in draw(st.permutations(base.ROWS))[:3]]
    if draw(st.booleans()):
        return {'rows.jsonl': b'\n'.join(lines)}
    begin, end = draw(st.sampled_from(AROUND))
    file = begin + b','.join(lines) + end
    return {
        'rows.json': file if draw(st.integers(0, 9)) else file.decode('utf-8', 'replace').encode('utf-16')
    }


def journal(name: str) -> InputsOf:
    """A file of answers with some lines changed."""

    @st.composite
    def files(draw: Draw, folder: Path) -> Files:
        lines = (folder / name).read_bytes().splitlines()
        changed = [draw(json_files(json.loads(line))) if draw(st.booleans()) else line for line in lines]
        return {name: b'\n'.join(changed) + draw(st.sampled_from(ENDS))}

    return files
