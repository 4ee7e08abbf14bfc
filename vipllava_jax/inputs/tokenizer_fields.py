"""Reads the special and added tokens in the small JSON files that accompany a tokenizer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.files import read_json
from vipllava_jax.inputs.tokenizer_json import MAX_ADDED_CHARACTERS, MAX_ADDED_TOKENS
from vipllava_jax.messages import CheckpointError, brief

STANDARD = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
ID = re.compile('[0-9]{1,8}', re.ASCII)


class ExtraToken(NamedTuple):
    """A token that is added to those of tokenizer.json or tokenizer.model."""

    content: str
    id: int | None  # None: the next free one
    flags: Mapping[str, bool] = {}  # as of tokenizers.AddedToken
    replaces: bool = False  # whether its flags replace those of the same token in tokenizer.json


class TokenizerFields(NamedTuple):
    """The fields of tokenizer_config.json, special_tokens_map.json and added_tokens.json that matter."""

    values: Mapping[str, str | bool] = {}  # such as bos_token and add_bos_token
    added: tuple[ExtraToken, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> 'TokenizerFields':
        """The fields of a folder; CheckpointError names the file and the invalid field."""
        special_map, config = folder / 'special_tokens_map.json', folder / 'tokenizer_config.json'
        found = {path: read_json(path, optional=True) for path in (special_map, config)}
        named_tokens: dict[str, str] = {}
        special_tokens: list[str] = []
        for path, fields in found.items():
            named_tokens |= _named_tokens(path, fields)
            special_tokens += _special_tokens(path, fields)
        flag = found[config].get('add_bos_token')
        if flag is not None and not isinstance(flag, bool):
            raise CheckpointError(f'{config}: add_bos_token: expected true or false, found {brief(flag)}')
        added = [
            *_decoder_tokens(config, found[config].get('added_tokens_decoder')),
            *_added_json_tokens(folder / 'added_tokens.json', {*named_tokens.values(), *special_tokens}),
        ]
        other_special = [token for name, token in named_tokens.items() if name not in STANDARD]
        added += [
            ExtraToken(token, None, {'special': True})
            for token in dict.fromkeys([*other_special, *special_tokens])
        ]
        by_content: dict[str, ExtraToken] = {}
        for token in added:  # those of added_tokens_decoder first
            by_content.setdefault(token.content, token)
        if len(by_content) > MAX_ADDED_TOKENS or sum(map(len, by_content)) > MAX_ADDED_CHARACTERS:
            raise CheckpointError(
                f'{config}: this and the other tokenizer files add {len(by_content)} tokens, expected '
                f'at most {MAX_ADDED_TOKENS} of {MAX_ADDED_CHARACTERS} characters in all'
            )
        return cls({**named_tokens, 'add_bos_token': bool(flag)}, tuple(by_content.values()))


def _named_tokens(path: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and other fields whose names end in _token, such as image_token in some models."""
    found = {}
    for field, value in fields.items():
        if value is not None and (field in STANDARD or (field.endswith('_token') and _may_be_token(value))):
            found[field] = token_text(path, field, value)
    more = fields.get('extra_special_tokens')
    if isinstance(more, dict):
        found |= {name: token_text(path, 'extra_special_tokens', value) for name, value in more.items()}
    return found


def _may_be_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and 'content' in value)


def _special_tokens(path: Path, fields: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for field in ('additional_special_tokens', 'extra_special_tokens'):
        value = fields.get(field)
        if isinstance(value, list):
            found += [token_text(path, field, token) for token in value]
        elif value is not None and not (isinstance(value, dict) and field == 'extra_special_tokens'):
            raise CheckpointError(f'{path}: {field}: expected a list of tokens, found {brief(value)}')
    return found


def _decoder_tokens(path: Path, tokens: Any) -> list[ExtraToken]:
    """The tokens of `added_tokens_decoder`, an object from ids to tokens with flags."""
    if tokens is not None and not isinstance(tokens, dict):
        raise CheckpointError(f'{path}: added_tokens_decoder: expected an object, found {brief(tokens)}')
    found = []
    for id, token in (tokens or {}).items():
        field = f'added_tokens_decoder: {brief(id)}'
        if not ID.fullmatch(id):
            raise CheckpointError(f'{path}: {field}: expected an id')
        if not isinstance(token, dict):
            raise CheckpointError(f'{path}: {field}: expected an object, found {brief(token)}')
        content = token_text(path, field, token)
        flags = {flag: token[flag] for flag in FLAGS if flag in token}
        for flag, value in flags.items():
            if not isinstance(value, bool):
                raise CheckpointError(
                    f'{path}: {field}: {flag}: expected true or false, found {brief(value)}'
                )
        found.append(ExtraToken(content, int(id), flags, replaces=True))
    return sorted(found, key=lambda token: token.id or 0)


def _added_json_tokens(path: Path, special: set[str]) -> list[ExtraToken]:
    """The tokens of added_tokens.json, an object from tokens to ids, from older versions of transformers."""
    found = []
    for content, id in read_json(path, optional=True).items():
        token_text(path, 'a token', content)
        if type(id) is not int or not 0 <= id < 10**8:
            raise CheckpointError(f'{path}: {brief(content)}: expected an id, found {brief(id)}')
        is_special = content in special
        found.append(ExtraToken(content, id, {'normalized': not is_special, 'special': is_special}))
    return sorted(found, key=lambda token: token.id or 0)


def token_text(path: Path, field: str, token: Any) -> str:
    """The text of a token, which is given as a string or as an object with `content`."""
    text = token.get('content') if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise CheckpointError(f'{path}: {field}: expected the text of a token, found {brief(token)}')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f'{path}: {field}: {brief(text)} is not valid Unicode') from None
    return text
