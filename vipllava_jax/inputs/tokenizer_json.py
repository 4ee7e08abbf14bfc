"""Checks a tokenizer.json before the tokenizers library reads it.

The library trusts its input: a malicious file can abort the process or exhaust the memory. Only components
that the tokenizers of Llama, Vicuna, Llama 3, Phi 3, Mistral and Qwen use are allowed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vipllava_jax.files import parse_bounded_json
from vipllava_jax.inputs.token_patterns import PATTERNS
from vipllava_jax.messages import brief

MAX_ID = 1 << 24
MAX_BYTES = 40 << 20  # bytes of the file, several times what a vocabulary of 128,000 tokens takes
MAX_TOKENS = 1 << 19  # tokens, and pairs to merge; the largest vocabularies have half as many
MAX_ADDED_TOKENS = 1 << 16  # tokens besides the vocabulary
MAX_OBJECTS = MAX_ADDED_TOKENS + 10_000  # objects in the JSON; in memory each takes thirty times its bytes
MAX_ADDED_CHARACTERS = 1 << 20  # characters of all added tokens
MAX_PARTS = 32  # normalizers, pre-tokenizers, decoders or post-processors
MAX_DEPTH = 4  # sequences within each other
MAX_GROWTH = 16  # the largest factor by which a text may grow in bytes; Llama's is 3


def parse_tokenizer(data: bytes) -> dict[str, Any]:
    """The checked content of a tokenizer.json; ValueError names an invalid field."""
    found = parse_bounded_json(data, MAX_OBJECTS)
    _model(found.get('model'))
    _added(found.get('added_tokens'))
    growth = _parts('normalizer', found.get('normalizer'), NORMALIZERS)
    growth *= _parts('pre_tokenizer', found.get('pre_tokenizer'), PRE_TOKENIZERS)
    if growth > MAX_GROWTH:
        raise ValueError(f'normalizer: can make a text more than {MAX_GROWTH} times as long')
    if _parts('decoder', found.get('decoder'), DECODERS) > MAX_GROWTH:
        raise ValueError(f'decoder: can make a text more than {MAX_GROWTH} times as long')
    _parts('post_processor', found.get('post_processor'), POST_PROCESSORS)
    return found


def _fail(field: str, value: Any, expected: str) -> ValueError:
    return ValueError(f'{field}: expected {expected}, found {brief(value)}')


def _model(model: Any) -> None:
    if not isinstance(model, Mapping) or model.get('type', 'BPE') != 'BPE':
        found = model.get('type') if isinstance(model, Mapping) else model
        raise _fail('model', found, 'one of type BPE')
    vocab, merges = model.get('vocab'), model.get('merges')
    if not isinstance(vocab, dict) or not 0 < len(vocab) <= MAX_TOKENS:
        raise _fail('model.vocab', vocab, f'an object of tokens and their ids, at most {MAX_TOKENS}')
    if not all(type(id) is int and 0 <= id < MAX_ID for id in vocab.values()):
        token = next(t for t, id in vocab.items() if type(id) is not int or not 0 <= id < MAX_ID)
        raise _fail(f'model.vocab: the id of {brief(token)}', vocab[token], f'0 to {MAX_ID - 1}')
    if len(set(vocab.values())) < len(vocab):
        raise ValueError('model.vocab: two tokens have the same id')
    if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
        raise _fail('model.merges', merges, f'a list of at most {MAX_TOKENS} pairs')
    for field in (
        'continuing_subword_prefix',
        'end_of_word_suffix',
    ):  # the library may cut inside a character
        if model.get(field):
            raise _fail(f'model.{field}', model[field], 'none')
    if model.get('dropout'):
        raise _fail('model.dropout', model['dropout'], 'none: the same text must give the same ids')
    unknown = model.get('unk_token')
    if unknown is not None and not (isinstance(unknown, str) and unknown in vocab):
        raise _fail('model.unk_token', unknown, 'a token of the vocabulary')


def _added(tokens: Any) -> None:
    if tokens is not None and (not isinstance(tokens, list) or len(tokens) > MAX_ADDED_TOKENS):
        raise _fail('added_tokens', tokens, f'a list of at most {MAX_ADDED_TOKENS} tokens')
    for token in tokens or ():
        if not isinstance(token, Mapping):
            raise _fail('added_tokens', token, 'objects')
        content, id = token.get('content'), token.get('id')
        if not isinstance(content, str) or not content:
            raise _fail('added_tokens: content', content, 'a string')
        if type(id) is not int or not 0 <= id < MAX_ID:
            raise _fail(f'added_tokens: the id of {brief(content)}', id, f'0 to {MAX_ID - 1}')
    if sum(len(token['content']) for token in tokens or ()) > MAX_ADDED_CHARACTERS:
        raise ValueError(f'added_tokens: more than {MAX_ADDED_CHARACTERS} characters in all')


Check = Callable[[str, Mapping[str, Any]], float]  # (field, part) -> the factor by which a text may grow


def _parts(field: str, part: Any, checks: Mapping[str, Check]) -> float:
    """The factor by which a part of the tokenizer, or a sequence of parts, may make a text longer."""
    budget = [MAX_PARTS]

    def visit(part: Any, depth: int) -> float:
        if part is None:
            return 1
        part_type = part.get('type') if isinstance(part, Mapping) else None
        budget[0] -= 1
        if budget[0] < 0 or depth > MAX_DEPTH:
            raise ValueError(
                f'{field}: more than {MAX_PARTS} parts, or sequences nested deeper than {MAX_DEPTH}'
            )
        if part_type == 'Sequence':
            listed = part.get(SEQUENCES[field])
            if not isinstance(listed, list):
                raise _fail(f'{field}.{SEQUENCES[field]}', listed, 'a list')
            growth = 1.0
            for one in listed:
                growth *= visit(one, depth + 1)
            return growth
        if not isinstance(part_type, str) or part_type not in checks:
            raise ValueError(
                f'{field}: {brief(part_type or part)} is not supported, only Sequence, {", ".join(checks)}: '
                'use the tokenizer.json of the original model'
            )
        return checks[part_type](f'{field}.{part_type}', part)

    return visit(part, 0)


def _plain(field: str, part: Mapping[str, Any]) -> float:
    return 1


def _times(growth: float) -> Check:
    return lambda field, part: growth


def _text(field: str, part: Mapping[str, Any], name: str, least: int = 1) -> int:
    """The bytes of a short text."""
    value = part.get(name)
    if not isinstance(value, str) or not least <= len(value) <= 64:
        raise _fail(f'{field}.{name}', value, f'a string of {least} to 64 characters')
    return len(value.encode(errors='replace'))


def _prepend(field: str, part: Mapping[str, Any]) -> float:
    _text(field, part, 'prepend')
    return 1


def _replace(field: str, part: Mapping[str, Any]) -> float:
    pattern = part.get('pattern')
    if not isinstance(pattern, Mapping) or pattern.keys() != {'String'}:
        raise _fail(f'{field}.pattern', pattern, '{"String": a string}')
    return max(1.0, _text(field, part, 'content', 0) / _text(f'{field}.pattern', pattern, 'String'))


def _split(field: str, part: Mapping[str, Any]) -> float:
    pattern = part.get('pattern')
    if isinstance(pattern, Mapping) and pattern.keys() == {'String'}:
        _text(f'{field}.pattern', pattern, 'String')
        return 1
    regex = pattern.get('Regex') if isinstance(pattern, Mapping) and len(pattern) == 1 else None
    if not isinstance(regex, str) or regex not in PATTERNS:
        raise _fail(
            f'{field}.pattern', pattern, 'a string, or a regular expression of a well-known tokenizer'
        )
    return 1


def _strip(field: str, part: Mapping[str, Any]) -> float:
    for name in ('start', 'stop'):
        if type(part.get(name)) is not int or not 0 <= part[name] <= 64:
            raise _fail(f'{field}.{name}', part.get(name), '0 to 64')
    return 1


def _template(field: str, part: Mapping[str, Any]) -> float:
    """Checks that special tokens exist, as the library does not when it encodes."""
    pieces, special = part.get('single'), part.get('special_tokens')
    if not isinstance(special, Mapping):
        raise _fail(f'{field}.special_tokens', special, 'an object')
    for name, token in special.items():
        ids, tokens = (token.get('ids'), token.get('tokens')) if isinstance(token, Mapping) else (None, None)
        if not (
            isinstance(ids, list)
            and isinstance(tokens, list)
            and len(ids) == len(tokens) <= 8
            and all(type(id) is int and 0 <= id < MAX_ID for id in ids)
        ):
            raise _fail(f'{field}.special_tokens: {brief(name)}', token, 'at most 8 ids and their tokens')
    if not isinstance(pieces, list) or len(pieces) > MAX_PARTS:
        raise _fail(f'{field}.single', pieces, f'a list of at most {MAX_PARTS} pieces')
    texts = 0
    for piece in pieces:
        part_type, value = (
            next(iter(piece.items())) if isinstance(piece, dict) and len(piece) == 1 else ('', None)
        )
        name = value.get('id') if isinstance(value, Mapping) else None
        texts += part_type == 'Sequence' and name == 'A'
        if not (part_type == 'Sequence' and name == 'A') and not (
            part_type == 'SpecialToken' and isinstance(name, str) and name in special
        ):
            raise _fail(f'{field}.single', piece, 'a token of special_tokens, or the sequence A')
    if texts != 1:
        raise ValueError(f'{field}.single: expected the sequence A once, found it {texts} times')
    return 1


SEQUENCES = {
    'normalizer': 'normalizers',
    'pre_tokenizer': 'pretokenizers',
    'decoder': 'decoders',
    'post_processor': 'processors',
}
NORMALIZERS: dict[str, Check] = {
    'Prepend': _prepend,
    'Replace': _replace,
    **dict.fromkeys(('NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Strip', 'StripAccents'), _plain),
}
PRE_TOKENIZERS: dict[str, Check] = {
    'Split': _split,
    'ByteLevel': _times(2),
    'Metaspace': _times(4),  # a byte, and before it the three of '▁'
    **dict.fromkeys(('Digits', 'Punctuation', 'Whitespace', 'WhitespaceSplit'), _plain),
}
DECODERS: dict[str, Check] = {
    'Replace': _replace,
    'Strip': _strip,
    **dict.fromkeys(('ByteFallback', 'ByteLevel', 'Fuse', 'Metaspace'), _plain),
}
POST_PROCESSORS: dict[str, Check] = {'TemplateProcessing': _template, 'ByteLevel': _plain}
