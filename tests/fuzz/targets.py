"""What is fuzzed: valid files, the inputs made of them, and what reads the folder of an input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.fuzz import base, nasty, readers
from tests.fuzz.lines import commands, marks, toml_files
from tests.fuzz.nasty import Draw, damaged, json_files
from tests.fuzz.pickles import archives
from tests.fuzz.pngs import pngs
from tests.fuzz.templates import templates
from vipllava_jax.training.config import KEYS

Files = dict[str, bytes]  # by their names, of an input: they take the place of valid ones
Inputs = Callable[[Path], st.SearchStrategy[Files]]


class Target(NamedTuple):
    """`valid` writes a folder that `read` takes; `inputs` are the files that are put into copies of it."""

    valid: Callable[[Path], None]
    inputs: Inputs
    read: Callable[[Path], None]


def one_of(*parts: st.SearchStrategy[Files]) -> st.SearchStrategy[Files]:
    return st.one_of(*parts)


def named(name: str, contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[Files]:
    return contents.map(lambda data: {name: data})


def objects(*names: str, extra: tuple[Any, ...] = ()) -> Inputs:
    """One of several JSON files, changed."""
    return lambda folder: st.one_of(
        [named(name, json_files(json.loads((folder / name).read_bytes()), extra)) for name in names]
    )


def binaries(*names: str) -> Inputs:
    """One of several binary files, damaged."""
    return lambda folder: st.one_of([named(name, damaged((folder / name).read_bytes())) for name in names])


def both(*inputs: Inputs) -> Inputs:
    return lambda folder: st.one_of([one(folder) for one in inputs])


def safetensors(name: str) -> Inputs:
    """A safetensors file whose header is changed, or its size, or any bytes."""

    @st.composite
    def files(draw: Draw, folder: Path) -> Files:
        header, body = base.split((folder / name).read_bytes())
        text = draw(json_files(header, SIZES, most=2))
        sizes = st.sampled_from((0, 1, max(len(text) - 1, 0), len(text) + 1, 10**8, 2**31, 2**63, 2**64 - 1))
        size = len(text) if draw(st.integers(0, 4)) else draw(sizes)
        return {name: size.to_bytes(8, 'little') + text + body}

    return lambda folder: one_of(files(folder), binaries(name)(folder))


SIZES = (
    [0],
    [2**40, 2**40],
    [0, 2**63],
    [-1],
    [24, 24],
    [0, 2304],
    'F64',
    'BF16',
    'I64',
    'F8_E4M3',
    'F4',
    'BOOL',
)
FIELDS = (
    'full',
    'cls_patch',
    'anyres',
    'int8',
    'fp8',
    {'quant_method': 'awq'},
    {'rope_type': 'linear'},
    'llama',
)
GROWING = [{'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'aa' * 9}] * 40
PATTERNS = ('(a+)+$', '(?<=a+)b', '[', '.{99999}', '(?:a{1000}){1000}', '\\p{Nope}')
PARTS = (
    *({'type': 'Sequence', 'normalizers': GROWING}, {'type': 'Prepend', 'prepend': 'x' * 100_000}),
    *({'type': 'Replace', 'pattern': {'Regex': pattern}, 'content': 'x'} for pattern in PATTERNS),
    *(
        {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': True}
        for pattern in PATTERNS
    ),
    *({'type': 'Strip', 'content': ' ', 'start': 2**40, 'stop': 0}, {'type': 'Truncate'}, {'type': 'NFKD'}),
    *(
        {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        {'type': 'ByteLevel'},
        {'type': 'BertNormalizer'},
    ),
    {'id': 10**9, 'content': '<image>', 'special': True, 'normalized': False},
)
STAGES = ('normalizer', 'pre_tokenizer', 'post_processor', 'decoder')
MOVES = (
    'x',
    '[]',
    '{"name": "default"}',
    '../model',
    'model-00001-of-00002.safetensors',
    '/dev/zero',
    'fifo',
    '.',
)
PLACES = (
    [1, 1, 9, 9],
    [[9, 9, 1, 1]],
    [[0, 0, 90, 60]],
    [[1e308] * 4],
    ['1239'],
    {'counts': 'x', 'size': [1, 1]},
)
WORDS = (
    '<bbox>',
    '<bbox9>',
    '<bbox' + '9' * 5000 + '>',
    '<image>' * 300,
    'vcr-1',
    'v7w-gpt4v',
    'photo.png',
    'fifo',
)
WORDS += ('mask:1,1,9,9', '9/point:1,1', 'rectangle:1,1,9,9:red:width=1e308')


def tokenizers(folder: Path) -> st.SearchStrategy[Files]:
    """A tokenizer.json in which one of the stages is another."""

    @st.composite
    def files(draw: Draw) -> Files:
        data = json.loads((folder / 'tokenizer.json').read_text())
        parts = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3))
        stage = draw(st.sampled_from(STAGES))
        several = {'type': 'Sequence', stage + 's': parts, 'pretokenizers': parts, 'processors': parts}
        data[stage] = parts[0] if draw(st.booleans()) else several
        return {'tokenizer.json': nasty.text(data).encode()}

    return files()


@st.composite
def row_files(draw: Draw) -> Files:
    """Rows in one of both forms, some of them broken, or the boxes that one of them names."""
    if draw(st.integers(0, 5)) == 0:
        return {'meta.json': draw(json_files(base.META, PLACES))}
    rows = [draw(json_files(row, PLACES + WORDS)) for row in draw(st.permutations(base.ROWS))[:3]]
    if draw(st.booleans()):
        return {'rows.jsonl': b'\n'.join(rows)}
    begin, end = draw(
        st.sampled_from(
            ((b'[', b']'), (b'[', b''), (b'\xef\xbb\xbf[', b']'), (b'[', b'][{}]'), (b'[', b',]'))
        )
    )
    file = begin + b','.join(rows) + end
    return {
        'rows.json': file.decode('utf-8', 'replace').encode('utf-16')
        if draw(st.integers(0, 9)) == 0
        else file
    }


def journals(folder: Path) -> st.SearchStrategy[Files]:
    """Lines of a file of answers, or of a run's metrics, some of which are changed."""

    @st.composite
    def lines(draw: Draw, name: str) -> Files:
        rows = [*map(json.loads, (folder / name).read_text().splitlines())]
        files = [draw(json_files(row)) if draw(st.booleans()) else json.dumps(row).encode() for row in rows]
        return {
            name: b'\n'.join(files)
            + draw(st.sampled_from((b'\n', b'', b'\n{"n": 1', b'\n\n', b'\r\n', b'\0\n')))
        }

    return one_of(lines('answers.jsonl'), lines('run/metrics.jsonl'), objects('run/run.json')(folder))


def pictures(folder: Path) -> st.SearchStrategy[Files]:
    """A picture of any format whose bytes are damaged, or a PNG file of odd chunks."""
    contents = [damaged((folder / 'formats' / form).read_bytes()) for form in base.FORMATS]
    return named('picture', st.one_of(pngs(), *contents))


def chats(folder: Path) -> st.SearchStrategy[Files]:
    """A chat template, alone or as JSON files hold it."""
    written = templates().map(lambda text: text.encode('utf-8', 'surrogatepass'))
    wrapped = templates().map(lambda text: json.dumps({'chat_template': text}).encode())
    return one_of(*[named('chat_template.jinja', written)] * 3, named('chat_template.json', wrapped))


TARGETS = {
    'config': Target(
        base.model, objects('config.json', 'generation_config.json', extra=FIELDS), readers.plan
    ),
    'index': Target(base.shards, objects('model.safetensors.index.json', extra=MOVES), readers.plan),
    'safetensors': Target(base.model, safetensors('model.safetensors'), readers.weights),
    'pickles': Target(base.pickle, lambda folder: named('pytorch_model.bin', archives()), readers.pickle),
    'adapters': Target(
        base.adapter,
        both(
            objects('peft/adapter_config.json', 'authors/adapter_config.json', extra=PATTERNS),
            safetensors('peft/adapter_model.safetensors'),
            binaries('authors/adapter_model.bin', 'authors/non_lora_trainables.bin'),
        ),
        readers.adapters,
    ),
    'tokenizer': Target(
        base.model,
        both(
            objects('tokenizer.json', extra=PARTS),
            objects('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', extra=PARTS),
            tokenizers,
            binaries('tokenizer.json'),
        ),
        readers.tokenizer,
    ),
    'sentencepiece': Target(
        base.sentencepiece,
        both(binaries('tokenizer.model'), objects('added_tokens.json', 'tokenizer_config.json')),
        readers.tokenizer,
    ),
    'processor': Target(
        base.model,
        objects('preprocessor_config.json', 'processor_config.json', 'config.json', 'tokenizer_config.json'),
        readers.processor,
    ),
    'templates': Target(base.model, chats, readers.chat),
    'converted': Target(
        base.converted,
        both(
            objects(
                'vipllava.json', 'config.json', 'params/_METADATA', extra=('float64', 'int4', [0], [2**40])
            ),
            lambda folder: binaries(
                *(str(p.relative_to(folder)) for p in sorted(folder.rglob('params/**/*')) if p.is_file())
            )(folder),
        ),
        readers.converted,
    ),
    'pictures': Target(base.pictures, pictures, readers.picture),
    'marks': Target(base.mark, lambda folder: named('mark.json', marks()), readers.mark),
    'rows': Target(base.data, lambda folder: row_files(), readers.rows),
    'journals': Target(base.journals, journals, readers.journals),
    'toml': Target(
        base.data,
        lambda folder: named('run.toml', toml_files((folder / 'run.toml').read_text(), tuple(KEYS))),
        readers.run,
    ),
    'commands': Target(base.data, lambda folder: commands(), readers.command),
}
