"""The tokenizer of a checkpoint folder, and a streaming decoder."""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from vipllava_jax.files import BOM, check_encoding, read_bytes
from vipllava_jax.inputs import sentencepiece, tokenizer_json
from vipllava_jax.inputs.tokenizer_fields import STANDARD, ExtraToken, TokenizerFields
from vipllava_jax.messages import CheckpointError, brief, one_line

LONG = 4096  # characters of a text that takes milliseconds to encode
MAX_PENDING = 64  # the maximum number of tokens held back while a character is incomplete
DEFAULTS = {'bos': '<s>', 'eos': '</s>', 'unk': '<unk>', 'pad': '<pad>'}  # used if no file names the token
T = TypeVar('T')


class Tokenizer:
    """Encodes as the checkpoint's tokenizer.json does, with just one beginning-of-sequence token."""

    def __init__(self, backend: tokenizers.Tokenizer, fields: Mapping[str, Any]) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        texts = {name: fields.get(f'{name}_token') or token for name, token in DEFAULTS.items()}
        ids = {name: backend.token_to_id(token) for name, token in texts.items()}
        self.bos, self.eos, pad = ids['bos'], ids['eos'], ids['pad']
        # the variables of chat templates: bos_token, eos_token and other named tokens
        named_tokens = {name: token for name, token in fields.items() if isinstance(token, str)}
        ends = {f'{name}_token': texts[name] for name in ('bos', 'eos') if ids[name] is not None}
        self.template_variables = ends | named_tokens
        self.pad: int = (self.eos or 0) if pad is None else pad
        self.always_bos = bool(fields.get('add_bos_token'))
        self.special_ids = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self.byte_ids = {backend.token_to_id(f'<0x{byte:02X}>') for byte in range(256)} - {None}

    @classmethod
    def load(cls, folder: str | Path) -> 'Tokenizer':
        """Loads tokenizer.json or, with the same ids, tokenizer.model."""
        folder = Path(folder)
        fields = TokenizerFields.read(folder)
        if (path := folder / 'tokenizer.json').exists():
            backend = _load_backend(path)
            standard = [fields.values.get(name) for name in STANDARD]
            known = [
                text for text in standard if isinstance(text, str) and backend.token_to_id(text) is not None
            ]
            special = [ExtraToken(text, None, {'special': True}) for text in known]
            _add_tokens(backend, [*fields.added, *special], path)
        elif (path := folder / 'tokenizer.model').exists():
            backend = sentencepiece.read_sentencepiece(path, fields.added)
        else:
            raise FileNotFoundError(
                f"no tokenizer.json or tokenizer.model in {folder}: copy one there from the Hub's repository"
            )
        return cls(backend, fields.values)

    def with_pad(self, id: int) -> 'Tokenizer':
        """This tokenizer with another padding id, which models ignore."""
        other = copy.copy(self)
        other.pad = id
        return other

    def token_to_id(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """A text -> ids; special tokens in the text become their ids."""
        return self.encode_with_spans(text)[0]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode`, and the start and end of each in the text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f'the text is not valid Unicode at character {error.start}: write it in UTF-8'
            ) from None
        if len(text) < LONG:
            encoding = call_library(self.backend.encode, text)
        else:  # a batch of one lets other threads run meanwhile, which may take seconds
            (encoding,) = call_library(self.backend.encode_batch, [text])
        ids, spans = encoding.ids, encoding.offsets
        if self.bos is not None and ids[:2] == [self.bos, self.bos]:
            return ids[1:], spans[1:]
        if self.bos is not None and self.always_bos and ids[:1] != [self.bos]:
            return [self.bos, *ids], [(0, 0), *spans]
        return ids, spans

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; drops special tokens, ids beyond the vocabulary, and white space at both ends."""
        return self.decode_untrimmed([int(id) for id in ids]).strip()

    def decode_untrimmed(self, ids: list[int]) -> str:
        """Like `decode`, but keeps white space."""
        if ids and min(ids) < 0:
            raise ValueError(f'ids start at 0, found {min(ids)}: leave out what is not a token')
        return call_library(self.backend.decode, ids, skip_special_tokens=True)


class TextStream:
    """Decodes ids as they arrive; the pieces of text joined equal `Tokenizer.decode` of all ids.

    A piece ends at the end of a character, and before white space. Its cost depends only on its new ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.context: list[int] = []  # the last decoded ids: without them a leading space would be lost
        self.pending: list[int] = []
        self.ready = 0  # how many of the pending ids can be decoded
        self.blank = ''  # trailing white space, held back until more text follows
        self.started = False

    def __copy__(self) -> 'TextStream':
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, pending=[*self.pending])  # the only field changed in place
        return other

    def push(self, ids: Iterable[int]) -> str:
        """New ids -> the text that they complete, which may be empty."""
        tokenizer = self.tokenizer
        self.pending = [*self.pending]  # not shared with the stream of which this one is a copy
        for id in map(int, ids):
            if id in tokenizer.special_ids or tokenizer.backend.id_to_token(id) is None:
                continue
            self.pending.append(id)
            # Consecutive bytes are decoded together: an invalid one turns all of them into replacements.
            if id not in tokenizer.byte_ids:
                self.ready = len(self.pending)
        return self._spell(patient=not tokenizer.byte_ids and len(self.pending) < MAX_PENDING)

    def end(self) -> str:
        """The rest of the text, after the last id."""
        self.ready = len(self.pending)
        return self._spell(patient=False)

    def _spell(self, patient: bool) -> str:
        if not self.ready:
            return ''
        decoded = self.tokenizer.decode_untrimmed(self.context + self.pending[: self.ready])
        if patient and decoded.endswith('\N{REPLACEMENT CHARACTER}'):
            return ''
        text = self.blank + decoded[len(self.tokenizer.decode_untrimmed(self.context)) :]
        self.context, self.pending, self.ready = self.pending[: self.ready], self.pending[self.ready :], 0
        piece = text.rstrip() if self.started else text.strip()
        self.blank = text[len(text.rstrip()) :] if self.started or piece else ''
        self.started = self.started or bool(piece)
        return piece


def call_library(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Calls a function of the tokenizers library; any failure is a ValueError.

    The library raises a plain Exception, or a BaseException if its Rust code panics.
    """
    try:
        return call(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f'the tokenizer fails: {one_line(error)}') from None


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    data = read_bytes(path, tokenizer_json.MAX_BYTES).removeprefix(BOM)
    check_encoding(path, data[:4])
    try:
        listed = tokenizer_json.parse_tokenizer(data).get('added_tokens') or ()
        backend = call_library(tokenizers.Tokenizer.from_buffer, data)
    except ValueError as error:
        raise CheckpointError(f'{path} is not a tokenizer that can be used: {error}') from None
    _check_ids(backend, ((token['content'], token['id']) for token in listed), path)
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, added: Iterable[ExtraToken], path: Path) -> None:
    """Adds the tokens that other files list, as transformers does."""
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    contents = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = []
    for content, _, flags, replaces in added:
        token = tokenizers.AddedToken(content, **flags)
        if content and repr(token) not in known and (replaces or content not in contents):
            missing.append(token)
    call_library(backend.add_tokens, missing)
    _check_ids(backend, ((token.content, token.id) for token in added if token.id is not None), path)


def _check_ids(backend: tokenizers.Tokenizer, ids: Iterable[tuple[str, int]], path: Path) -> None:
    """Raises CheckpointError if a token's id differs from a file's: the library assigns ids in order."""
    for content, id in ids:
        if content and (found := backend.token_to_id(content)) != id:
            raise CheckpointError(
                f'{path}: the added token {brief(content)} has the id {id} in a file, but its position '
                f'among the tokens gives it {found}: use intact tokenizer files of one model'
            )
