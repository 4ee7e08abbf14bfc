"""Text to ids and back, whole or as it is generated, from the tokenizer files of a checkpoint folder."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers

from vipllava_jax.folders import read_json
from vipllava_jax.inputs import sentencepiece

PENDING = 64  # tokens held back at most for the rest of a character


class Tokenizer:
    """Ids as the checkpoint's tokenizer.json gives them, the token that begins a sequence just once."""

    def __init__(self, core: tokenizers.Tokenizer, fields: dict[str, Any]) -> None:
        core.no_padding()
        core.no_truncation()
        self.core = core
        named = {name: _text(fields.get(f'{name}_token')) or f'<{name}>' for name in ('unk', 'pad')}
        named |= {
            'bos': _text(fields.get('bos_token')) or '<s>',
            'eos': _text(fields.get('eos_token')) or '</s>',
        }
        self.tokens = {name: token for name, token in named.items() if core.token_to_id(token) is not None}
        self.bos, self.eos, pad = (self.id_of(self.tokens.get(name)) for name in ('bos', 'eos', 'pad'))
        self.pad: int = (self.eos or 0) if pad is None else pad
        self.always_bos = bool(fields.get('add_bos_token'))
        self.special = {id for id, token in core.get_added_tokens_decoder().items() if token.special}
        self.bytes = {core.token_to_id(f'<0x{byte:02X}>') for byte in range(256)} - {None}

    @classmethod
    def load(cls, folder: str | Path) -> 'Tokenizer':
        """From tokenizer.json, or else from tokenizer.model with the sentencepiece extra, to the same ids."""
        folder = Path(folder)
        read = partial(read_json, optional=True)
        fields = read(folder / 'special_tokens_map.json') | read(folder / 'tokenizer_config.json')
        if (path := folder / 'tokenizer.json').is_file():
            try:
                return cls(tokenizers.Tokenizer.from_file(str(path)), fields)
            except Exception as error:  # the library raises nothing more precise
                raise ValueError(f'{path} is not a tokenizer ({error}): get a whole copy of it') from None
        if (path := folder / 'tokenizer.model').is_file():
            listed = {
                token['content']: int(id) for id, token in fields.get('added_tokens_decoder', {}).items()
            }
            added = read(folder / 'added_tokens.json') or listed
            return cls(sentencepiece.read(path, added), fields)
        raise FileNotFoundError(
            f"no tokenizer.json or tokenizer.model in {folder}: copy one there from the Hub's repository"
        )

    def id_of(self, token: str | None) -> int | None:
        return None if token is None else self.core.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """A text -> ids; special tokens written out in it become their ids."""
        return self.spans(text)[0]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, with the characters of the text, from and to, that each id stands for."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f'the text is not valid Unicode at character {error.start}: write it in UTF-8'
            ) from None
        encoding = self.core.encode(text)
        ids, spans = encoding.ids, encoding.offsets
        if self.bos is not None and ids[:2] == [self.bos, self.bos]:
            return ids[1:], spans[1:]
        if self.bos is not None and self.always_bos and ids[:1] != [self.bos]:
            return [self.bos, *ids], [(0, 0), *spans]
        return ids, spans

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text, without special tokens, ids beyond the vocabulary and white space at either end."""
        return self.spell([int(id) for id in ids]).strip()

    def spell(self, ids: list[int]) -> str:
        """As `decode`, but with the white space."""
        if ids and min(ids) < 0:
            raise ValueError(f'ids start at 0, found {min(ids)}: leave out what is not a token')
        return self.core.decode(ids, skip_special_tokens=True)


class Stream:
    """Text of ids that arrive bit by bit: all the pieces together are `Tokenizer.decode` of all the ids.

    A piece ends where a character ends, and before white space. It costs as much as its new ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.context: list[int] = []  # what was spelled last: without it a leading space would be lost
        self.pending: list[int] = []
        self.ready = 0  # so many of the pending can be spelled
        self.blank = ''  # white space that is not at the end if more follows
        self.started = False

    def push(self, ids: Iterable[int]) -> str:
        """New ids -> the text that they complete, perhaps none."""
        tokenizer = self.tokenizer
        for id in map(int, ids):
            if id in tokenizer.special or tokenizer.core.id_to_token(id) is None:
                continue
            self.pending.append(id)
            # Bytes in a row are spelled together: one that is wrong turns all of them into replacements.
            if id not in tokenizer.bytes:
                self.ready = len(self.pending)
        return self._spell(patient=not tokenizer.bytes and len(self.pending) < PENDING)

    def end(self) -> str:
        """The rest, after the last id."""
        self.ready = len(self.pending)
        return self._spell(patient=False)

    def _spell(self, patient: bool) -> str:
        if not self.ready:
            return ''
        whole = self.tokenizer.spell(self.context + self.pending[: self.ready])
        if patient and whole.endswith('\N{REPLACEMENT CHARACTER}'):
            return ''
        text = self.blank + whole[len(self.tokenizer.spell(self.context)) :]
        self.context, self.pending, self.ready = self.pending[: self.ready], self.pending[self.ready :], 0
        piece = text.rstrip() if self.started else text.strip()
        self.blank = text[len(text.rstrip()) :] if self.started or piece else ''
        self.started = self.started or bool(piece)
        return piece


def _text(token: Any) -> str | None:
    """A special token in tokenizer_config.json is its text, or an object that holds the text."""
    return token.get('content') if isinstance(token, dict) else token
