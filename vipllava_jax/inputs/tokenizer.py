"""Text to ids and back, whole or as it is generated, from the tokenizer files of a checkpoint folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer as Core, decoders, models, normalizers, processors

PENDING = 64  # tokens held back at most where characters may span tokens


def read_fields(path: Path) -> dict[str, Any]:
    """A JSON file -> its object, {} if there is no such file; ValueError names a file that holds anything else."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error}): get a whole copy of it') from None
    if not isinstance(fields, dict):
        raise ValueError(f'{path}: expected a JSON object, found a {type(fields).__name__}')
    return fields


class Tokenizer:
    """Ids as the checkpoint's tokenizer.json gives them, with the beginning-of-sequence token there just once."""

    def __init__(self, core: Core, fields: dict[str, Any]) -> None:
        self.core = core
        core.no_padding()
        core.no_truncation()
        self.tokens = {
            name: token
            for name, default in {'bos': '<s>', 'eos': '</s>', 'pad': '<pad>', 'unk': '<unk>'}.items()
            if core.token_to_id(token := _content(fields.get(f'{name}_token')) or default) is not None
        }
        self.bos, self.eos, pad = (self.id_of(self.tokens.get(name)) for name in ('bos', 'eos', 'pad'))
        self.pad = pad if pad is not None else self.eos or 0
        self.add_bos = fields.get('add_bos_token')  # None leaves it to tokenizer.json
        self.special = {id for id, token in core.get_added_tokens_decoder().items() if token.special}
        self.bytes = {id for byte in range(256) if (id := core.token_to_id(f'<0x{byte:02X}>')) is not None}

    @classmethod
    def load(cls, folder: str | Path) -> 'Tokenizer':
        """From tokenizer.json, or from tokenizer.model with the sentencepiece extra, to the same ids."""
        folder = Path(folder)
        fields = {
            **read_fields(folder / 'special_tokens_map.json'),
            **read_fields(folder / 'tokenizer_config.json'),
        }
        path = folder / 'tokenizer.json'
        if not path.is_file():
            return cls(_from_sentencepiece(folder, fields), fields)
        try:
            return cls(Core.from_file(str(path)), fields)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f'{path} is not a tokenizer ({error}): get a whole copy of it') from None

    def id_of(self, token: str | None) -> int | None:
        return None if token is None else self.core.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Special tokens written out in the text become their ids."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f'the text is not valid Unicode at character {error.start}: write it in UTF-8'
            ) from None
        ids = self.core.encode(text).ids
        if self.bos is None:
            return ids
        if self.add_bos is False and not text.startswith(self.tokens['bos']) and ids[:1] == [self.bos]:
            return ids[1:]
        if ids[:2] == [self.bos, self.bos]:
            return ids[1:]
        return [self.bos, *ids] if self.add_bos and ids[:1] != [self.bos] else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Without special tokens, ids beyond the vocabulary and white space at either end."""
        return self.text([int(id) for id in ids]).strip()

    def text(self, ids: list[int]) -> str:
        if ids and min(ids) < 0:
            raise ValueError(f'ids must not be negative, found {min(ids)}')
        return self.core.decode(ids, skip_special_tokens=True)


class Stream:
    """Text of ids that arrive bit by bit: all pieces together are `Tokenizer.decode` of all ids.

    A piece ends where a character ends, and before white space. Its cost is that of the new ids alone.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.context: list[int] = []  # already given out; without it a leading space would be lost
        self.pending: list[int] = []
        self.blank = ''
        self.started = False

    def push(self, ids: Iterable[int]) -> str:
        """New ids -> the text that they complete, perhaps none."""
        core, special = self.tokenizer.core, self.tokenizer.special
        self.pending += [
            int(id) for id in ids if int(id) not in special and core.id_to_token(int(id)) is not None
        ]
        # A run of byte tokens is one unit: a single wrong byte turns all of them into replacement characters.
        ready = len(self.pending)
        while ready and self.pending[ready - 1] in self.tokenizer.bytes:
            ready -= 1
        return self._give(ready, hold=not self.tokenizer.bytes and len(self.pending) < PENDING)

    def end(self) -> str:
        """The rest, after the last id."""
        return self._give(len(self.pending), hold=False)

    def _give(self, count: int, hold: bool) -> str:
        if not count:
            return ''
        whole = self.tokenizer.text(self.context + self.pending[:count])
        if hold and whole.endswith('\N{REPLACEMENT CHARACTER}'):
            return ''
        new = self.blank + whole[len(self.tokenizer.text(self.context)) :]
        self.context, self.pending = self.pending[:count], self.pending[count:]
        new = new if self.started else new.lstrip()
        text = new.rstrip()
        self.blank = new[len(text) :]
        self.started = self.started or bool(text)
        return text


def _content(token: Any) -> str | None:
    """A token in tokenizer_config.json is its text, or an object that holds the text."""
    return token.get('content') if isinstance(token, dict) else token


def _from_sentencepiece(folder: Path, fields: dict[str, Any]) -> Core:
    path = folder / 'tokenizer.model'
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer.json and no tokenizer.model in {folder}: copy one there from the checkpoint's repository"
        )
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ImportError(
            f"{folder} has no tokenizer.json; to read its tokenizer.model: pip install 'vipllava-jax[sentencepiece]'"
        ) from None
    pieces = SentencePieceProcessor()
    try:
        pieces.LoadFromFile(str(path))
    except Exception as error:  # the library raises RuntimeError, OSError and more
        raise ValueError(f'{path} is not a sentencepiece model ({error}): get a whole copy of it') from None
    count = pieces.GetPieceSize()
    vocab = {pieces.IdToPiece(id): id for id in range(count)}
    scores = {piece: pieces.GetScore(id) for piece, id in vocab.items()}
    core = Core(
        models.BPE(vocab, _merges(vocab, scores), unk_token='<unk>', fuse_unk=True, byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    core.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    bos = pieces.IdToPiece(pieces.bos_id())
    core.post_processor = processors.TemplateProcessing(
        single=f'{bos} $A', pair=f'{bos} $A {bos} $B', special_tokens=[(bos, pieces.bos_id())]
    )
    special = [piece for piece, id in vocab.items() if pieces.IsControl(id) or pieces.IsUnknown(id)]
    added = sorted(_added(folder, fields, count).items(), key=lambda item: item[1])
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    for token, id in added:
        core.add_special_tokens([AddedToken(token, normalized=False)])
        if core.token_to_id(token) != id:
            raise ValueError(
                f'{folder}: {token} should be id {id} but comes after {core.get_vocab_size() - 1} others'
            )
    return core


def _added(folder: Path, fields: dict[str, Any], count: int) -> dict[str, int]:
    """The tokens after the model's own; the authors' folders name none, so they get those of the Hub's."""
    listed = {token['content']: int(id) for id, token in fields.get('added_tokens_decoder', {}).items()}
    added = read_fields(folder / 'added_tokens.json') or listed
    return {token: id for token, id in added.items() if id >= count} or {'<image>': count, '<pad>': count + 1}


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best third first."""
    found = [
        (-scores[piece], vocab[piece[:cut]], vocab[piece[cut:]])
        for piece in vocab
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    names = list(vocab)
    return [(names[left], names[right]) for _, left, right in sorted(found)]
