"""A tokenizer.json that would exhaust memory, hang or abort the tokenizers library is refused first."""

import json
import os

import pytest
import tokenizers

from tests.makers import tiny_tokenizer, write_processor_files
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.token_patterns import GPT_2, PATTERNS
from vipllava_jax.inputs.tokenizer import Tokenizer, call_library
from vipllava_jax.inputs.tokenizer_json import parse_tokenizer
from vipllava_jax.loading import bundled
from vipllava_jax.messages import CheckpointError

BASE = json.loads(tiny_tokenizer().to_str())
BYTES = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
SPACES = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'first', 'split': False}


def replace(old: str, new: str) -> dict:
    return {'type': 'Replace', 'pattern': {'String': old}, 'content': new}


def split(pattern: dict) -> dict:
    return {'type': 'Split', 'pattern': pattern, 'behavior': 'Isolated', 'invert': False}


def sequence(field: str, *parts: dict) -> dict:
    return {'type': 'Sequence', field: [*parts]}


def added(content='qq', id=400, **flags) -> dict:
    usual = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    return {'id': id, 'content': content, **usual, 'special': True} | flags


def changed(**fields) -> dict:
    """The file with changed fields; model__vocab is the field `vocab` of `model`."""
    content = json.loads(json.dumps(BASE))
    for name, value in fields.items():
        place, _, inner = name.rpartition('__')
        (content[place] if place else content)[inner] = value
    return content


def test_the_tokenizers_of_known_models_are_accepted():
    parse_tokenizer((bundled() / 'tokenizer.json').read_bytes())
    llama_3 = changed(
        normalizer=None,
        pre_tokenizer=sequence('pretokenizers', split({'Regex': max(PATTERNS, key=len)}), BYTES),
        decoder=BYTES,
        post_processor=sequence('processors', BYTES, BASE['post_processor']),
    )
    mistral = changed(normalizer=None, pre_tokenizer=SPACES)
    for fields in (BASE, llama_3, mistral, changed(normalizer={'type': 'NFC'}, model__ignore_merges=True)):
        assert parse_tokenizer(json.dumps(fields).encode()) == fields
        tokenizers.Tokenizer.from_str(json.dumps(fields))


@pytest.mark.parity
def test_allowed_patterns_are_those_of_published_tokenizers():
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert PRETOKENIZE_REGEX in PATTERNS
    assert GPT_2 == r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    llama_3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r'|\s*[\r\n]+|\s+(?!\S)|\s+'
    )
    assert llama_3 in PATTERNS


WRONG = [
    ({'normalizer': sequence('normalizers', *[replace('a', 'aa')] * 30)}, 'normalizer: can make a text more'),
    ({'normalizer': replace('a', 'a' * 65)}, 'normalizer.Replace.content: expected a string of 0 to 64'),
    ({'normalizer': replace('', 'x')}, r'normalizer.Replace.pattern.String: expected a string of 1 to 64'),
    ({'normalizer': replace('a', 7)}, 'normalizer.Replace.content: expected a string'),
    (
        {'normalizer': {'type': 'Replace', 'pattern': {'Regex': '(a+)+$'}, 'content': ''}},
        'normalizer.Replace.pattern: expected',
    ),
    ({'normalizer': {'type': 'Prepend', 'prepend': 'x' * 99}}, 'normalizer.Prepend.prepend'),
    (
        {'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}},
        "'Precompiled' is not supported",
    ),
    ({'normalizer': {'type': ['x']}}, 'normalizer: .* is not supported'),
    ({'normalizer': 'NFC'}, "normalizer: 'NFC' is not supported"),
    ({'normalizer': sequence('normalizers', *[{'type': 'NFC'}] * 40)}, 'normalizer: more than 32 parts'),
    ({'normalizer': {'type': 'Sequence', 'normalizers': 7}}, 'normalizer.normalizers: expected a list'),
    ({'pre_tokenizer': split({'Regex': '(a+)+$'})}, 'pre_tokenizer.Split.pattern: expected'),
    ({'pre_tokenizer': split({'Regex': ['x']})}, 'pre_tokenizer.Split.pattern: expected'),
    ({'pre_tokenizer': split({'String': ''})}, 'pre_tokenizer.Split.pattern.String'),
    ({'pre_tokenizer': sequence('pretokenizers', *[BYTES] * 20)}, 'can make a text more than 16 times'),
    ({'pre_tokenizer': {'type': 'BertPreTokenizer'}}, "'BertPreTokenizer' is not supported"),
    ({'decoder': {'type': 'Strip', 'content': ' ', 'start': 10**18, 'stop': 0}}, 'decoder.Strip.start'),
    ({'decoder': sequence('decoders', *[replace('a', 'aa')] * 9)}, 'decoder: can make a text more'),
    ({'decoder': {'type': 'CTC'}}, "decoder: 'CTC' is not supported"),
    ({'post_processor': {'type': 'BertProcessing'}}, "post_processor: 'BertProcessing' is not supported"),
    ({'post_processor__special_tokens': {}}, 'post_processor.TemplateProcessing.single: expected'),
    ({'post_processor__special_tokens': 7}, 'special_tokens: expected an object'),
    (
        {'post_processor__special_tokens': {'<s>': {'id': '<s>', 'ids': [1, 2], 'tokens': ['<s>']}}},
        'special_tokens',
    ),
    (
        {'post_processor__special_tokens': {'<s>': {'id': '<s>', 'ids': [-1], 'tokens': ['<s>']}}},
        'special_tokens',
    ),
    ({'post_processor__single': [{'Sequence': {'id': 'B', 'type_id': 0}}]}, 'expected a token of special'),
    ({'post_processor__single': [{'Sequence': {'id': 'A', 'type_id': 0}}] * 2}, 'found it 2 times'),
    ({'post_processor__single': [{'Sequence': {'id': 'A', 'type_id': 0}}] * 99}, 'at most 32 pieces'),
    ({'post_processor__single': []}, 'found it 0 times'),
    ({'model': None}, 'model: expected one of type BPE, found None'),
    ({'model__type': 'Unigram'}, "model: expected one of type BPE, found 'Unigram'"),
    ({'model__vocab': {}}, 'model.vocab: expected an object'),
    ({'model__vocab': [['a', 0]]}, 'model.vocab: expected an object'),
    ({'model__vocab': BASE['model']['vocab'] | {'q' * 9: -1}}, "the id of 'qqqqqqqqq': expected 0 to"),
    ({'model__vocab': BASE['model']['vocab'] | {'q' * 9: 1 << 40}}, "the id of 'qqqqqqqqq': expected 0 to"),
    ({'model__vocab': BASE['model']['vocab'] | {'q' * 9: True}}, "the id of 'qqqqqqqqq': expected 0 to"),
    ({'model__vocab': BASE['model']['vocab'] | {'q' * 9: 5}}, 'two tokens have the same id'),
    (
        {'model__vocab': {f't{n}': n for n in range(600_000)}},
        'model.vocab: expected an object .* 600000 entries',
    ),
    ({'model__merges': [['a', 'b']] * 600_000}, 'model.merges: expected a list of at most 524288'),
    ({'model__merges': None}, 'model.merges: expected a list'),
    ({'model__merges': [['zz', 'yy']]}, 'Token `zz` out of vocabulary'),
    ({'model__continuing_subword_prefix': 'éééé'}, 'model.continuing_subword_prefix: expected none'),
    ({'model__end_of_word_suffix': 'é'}, 'model.end_of_word_suffix: expected none'),
    ({'model__dropout': 0.5}, 'model.dropout: expected none'),
    ({'model__unk_token': 'zzz'}, "model.unk_token: expected a token of the vocabulary, found 'zzz'"),
    ({'added_tokens': 7}, 'added_tokens: expected a list'),
    ({'added_tokens': [7]}, 'added_tokens: expected objects'),
    ({'added_tokens': [added('')]}, "added_tokens: content: expected a string, found ''"),
    ({'added_tokens': [added('x' * 2_000_000)]}, 'added_tokens: more than 1048576 characters in all'),
    ({'added_tokens': [added(id=-1)]}, "the id of 'qq': expected 0 to"),
    ({'added_tokens': [added(id=10**400)]}, "the id of 'qq': .* found a whole number of 401 digits"),
    ({'added_tokens': [*BASE['added_tokens'], added(id=4000)]}, "token 'qq' has the id 4000 .* gives it 400"),
    ({'added_tokens': [added()] * 70_000}, 'added_tokens: expected a list of at most 65536'),
]


@pytest.mark.parametrize(('fields', 'message'), WRONG, ids=range(len(WRONG)))
def test_unsupported_components_are_refused(tmp_path, capfd, fields, message):
    write_processor_files(tmp_path)
    (tmp_path / 'tokenizer.json').write_text(json.dumps(changed(**fields)))
    with pytest.raises(CheckpointError, match=message) as caught:
        Processor.load(tmp_path)
    assert 'tokenizer.json' in str(caught.value)
    assert len(str(caught.value)) <= 520
    assert capfd.readouterr().err == ''  # where the library reports its failures


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"version": ', 'tokenizer.json is not a tokenizer'),
        ('[' * 100_000, 'nested too deeply'),
        ('{"a":' * 5000 + '1' + '}' * 5000, 'nested too deeply|model: expected'),
        ('[]', 'expected a JSON object, found list'),
        ('7', 'expected a JSON object, found int'),
        ('\ud800'.encode('utf-8', 'surrogatepass'), 'is not a tokenizer'),
        (json.dumps(changed(added_tokens=[added('\ud800')])), 'is not a tokenizer'),
        ('{"model": 1, "model": 2}', "'model' occurs twice"),
        ('{"normalizer": {"type": "Sequence", "normalizers": ' * 90 + '[]' + '}}' * 90, 'model|nested'),
    ],
    ids=range(9),
)
def test_anything_but_a_json_object_is_refused(tmp_path, text, message):
    write_processor_files(tmp_path)
    (tmp_path / 'tokenizer.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


def test_the_number_of_objects_is_bounded():
    """An object takes thirty times as many bytes in Python as in JSON."""
    with pytest.raises(ValueError, match='more than 75536 objects'):
        parse_tokenizer(b'{"x":[' + b'{"":{}},' * 50_000 + b'1]}')


def test_a_byte_order_mark_is_dropped_and_utf_16_is_named(tmp_path):
    write_processor_files(tmp_path)
    path = tmp_path / 'tokenizer.json'
    text = path.read_bytes()
    path.write_bytes(b'\xef\xbb\xbf' + text)
    assert Tokenizer.load(tmp_path).encode('hi')
    path.write_bytes(text.decode().encode('utf-16'))
    with pytest.raises(CheckpointError, match='tokenizer.json: is UTF-16, expected UTF-8'):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'])
def test_a_fifo_does_not_hang(tmp_path, name):
    write_processor_files(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f'{name}: expected a regular file, found a FIFO'):
        Tokenizer.load(tmp_path)


def test_errors_of_the_library_become_value_errors():
    class PanicException(BaseException):
        """Like the exception of pyo3."""

    def panic() -> None:
        raise PanicException('index out of bounds')

    with pytest.raises(ValueError, match='the tokenizer fails: PanicException index out of bounds'):
        call_library(panic)
    with pytest.raises(KeyboardInterrupt):
        call_library(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
