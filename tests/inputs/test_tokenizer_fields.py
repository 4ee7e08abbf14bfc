"""Tokens in the other tokenizer files are read as in transformers, and invalid fields are named."""

import json
from pathlib import Path

import pytest

from tests.makers import tiny_tokenizer, write_processor_files
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.tokenizer import Tokenizer
from vipllava_jax.messages import CheckpointError

TEXTS = ('a<image>b', 'a <image> b<pad>', '<one>x <two>', 'x<one> <two>y', ' <TWO>', 'a</s>b<s>')
FLAGS = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False) | {'special': True}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder whose tokenizer.json ends with id 397: its last two tokens are in no file yet."""
    write_processor_files(tmp_path)
    fields = json.loads((tmp_path / 'tokenizer.json').read_text())
    fields['added_tokens'] = fields['added_tokens'][:3]
    (tmp_path / 'tokenizer.json').write_text(json.dumps(fields))
    edit(tmp_path / 'tokenizer_config.json', pad_token='<unk>')
    return tmp_path


def edit(path: Path, **fields) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | fields))


def listed(*tokens: str, first: int = 398, **flags) -> dict:
    return {str(first + n): {'content': token, **FLAGS, **flags} for n, token in enumerate(tokens)}


def peer(folder: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def decoder(folder: Path, *tokens: str, **how) -> None:
    edit(folder / 'tokenizer_config.json', added_tokens_decoder=listed(*tokens, **how))


CASES = {
    'added_tokens_decoder': lambda folder: decoder(folder, '<image>', '<one>', '<two>'),
    'not special': lambda folder: decoder(folder, '<image>', '<one>', '<two>', special=False),
    'normalized': lambda folder: decoder(folder, '<image>', '<one>', '<two>', normalized=True),
    'stripping': lambda folder: decoder(folder, '<image>', '<one>', '<two>', lstrip=True, rstrip=True),
    'other flags': lambda folder: decoder(folder, '<s>', '</s>', first=1, rstrip=True),
    'added_tokens.json': lambda folder: edit(folder / 'added_tokens.json', **{'<image>': 398, '<one>': 399}),
    'additional': lambda folder: edit(
        folder / 'tokenizer_config.json', additional_special_tokens=['<image>', '<one>']
    ),
    'extra list': lambda folder: edit(folder / 'tokenizer_config.json', extra_special_tokens=['<image>']),
    'extra names': lambda folder: edit(
        folder / 'tokenizer_config.json', extra_special_tokens={'image_token': '<image>'}
    ),
    'image_token': lambda folder: edit(folder / 'tokenizer_config.json', image_token='<image>'),
    'names of tokens': lambda folder: edit(folder / 'tokenizer.json', added_tokens=[]),
    'nothing': lambda folder: None,
}


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_tokens_from_other_files_equal_those_of_transformers(folder, case):
    CASES[case](folder)
    ours, theirs = Tokenizer.load(folder), peer(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)['input_ids'], text
    assert ours.template_variables.items() >= theirs.special_tokens_map.items()
    assert ours.special_ids == {id for id, token in theirs.added_tokens_decoder.items() if token.special}


def test_an_added_image_token_is_found(folder):
    with pytest.raises(ValueError, match='has no token <image>'):
        Processor.load(folder)
    CASES['added_tokens_decoder'](folder)
    assert Processor.load(folder).image_id == 398


@pytest.mark.parametrize('name', ['added_tokens_decoder', 'added_tokens.json'])
def test_an_impossible_id_is_refused(folder, name):
    if name == 'added_tokens.json':
        edit(folder / name, **{'<image>': 32000})
    else:
        decoder(folder, '<image>', first=32000)
    with pytest.raises(CheckpointError, match="'<image>' has the id 32000 .* gives it 398"):
        Processor.load(folder)


TOKENS = [7, 1.5, True, ['<s>'], {}, {'content': 7}, 10**400, '\ud800', {'content': '\udfff'}]


@pytest.mark.parametrize('name', ['tokenizer_config.json', 'special_tokens_map.json'])
@pytest.mark.parametrize('field', ['bos_token', 'eos_token', 'unk_token', 'pad_token'])
@pytest.mark.parametrize('value', TOKENS, ids=range(len(TOKENS)))
def test_invalid_tokens_are_named(folder, name, field, value):
    edit(folder / name, **{field: value})
    with pytest.raises(CheckpointError, match=f'{name}: {field}: ') as caught:
        Tokenizer.load(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 520


INVALID = [
    ('tokenizer_config.json', {'add_bos_token': 1}, 'add_bos_token: expected true or false, found 1'),
    ('tokenizer_config.json', {'add_bos_token': 'yes'}, 'add_bos_token: expected true or false'),
    ('tokenizer_config.json', {'added_tokens_decoder': [1]}, 'added_tokens_decoder: expected an object'),
    (
        'tokenizer_config.json',
        {'added_tokens_decoder': {'x': {'content': 'q'}}},
        "'x': expected an id",
    ),
    (
        'tokenizer_config.json',
        {'added_tokens_decoder': {'9' * 5000: {'content': 'q'}}},
        'expected an id',
    ),
    (
        'tokenizer_config.json',
        {'added_tokens_decoder': {'-1': {'content': 'q'}}},
        "'-1': expected an id",
    ),
    ('tokenizer_config.json', {'added_tokens_decoder': {'٣': {'content': 'q'}}}, 'expected an id'),
    ('tokenizer_config.json', {'added_tokens_decoder': {'400': 'q'}}, "'400': expected an object, found 'q'"),
    ('tokenizer_config.json', {'added_tokens_decoder': {'400': {}}}, "'400': expected the text of a token"),
    (
        'tokenizer_config.json',
        {'added_tokens_decoder': {'400': {'content': 'q', 'lstrip': 7}}},
        "'400': lstrip: expected true or false, found 7",
    ),
    (
        'tokenizer_config.json',
        {'additional_special_tokens': 'x'},
        'additional_special_tokens: expected a list',
    ),
    ('tokenizer_config.json', {'additional_special_tokens': [7]}, 'expected the text of a token, found 7'),
    ('tokenizer_config.json', {'extra_special_tokens': 7}, 'extra_special_tokens: expected a list'),
    ('tokenizer_config.json', {'extra_special_tokens': {'a': []}}, 'extra_special_tokens: expected the text'),
    ('added_tokens.json', {'<one>': '400'}, "added_tokens.json: '<one>': expected an id, found '400'"),
    ('added_tokens.json', {'<one>': -1}, 'expected an id, found -1'),
    ('added_tokens.json', {'<one>': 1e400}, 'expected an id, found inf'),
    ('added_tokens.json', {'<one>': 10**400}, 'expected an id, found a whole number of 401 digits'),
    ('tokenizer_config.json', {'extra_special_tokens': ['x' * 2_000_000]}, 'add 1 tokens, expected at most'),
    ('tokenizer_config.json', {'extra_special_tokens': [f't{n}' for n in range(70_000)]}, 'add 70000 tokens'),
    ('added_tokens.json', {'\ud800': 400}, 'is not valid Unicode'),
]


@pytest.mark.parametrize(('name', 'fields', 'message'), INVALID, ids=range(len(INVALID)))
def test_invalid_fields_are_named(folder, name, fields, message):
    edit(folder / name, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.load(folder)
    assert name in str(caught.value)
    assert len(str(caught.value)) <= 520


def test_control_characters_are_encoded_and_invalid_unicode_is_refused():
    tokenizer = Tokenizer(tiny_tokenizer(), {})
    assert tokenizer.decode(tokenizer.encode('a\x00b\x1b[2J')) == 'a\x00b\x1b[2J'
    with pytest.raises(ValueError, match='not valid Unicode at character 1'):
        tokenizer.encode('a\ud800')
