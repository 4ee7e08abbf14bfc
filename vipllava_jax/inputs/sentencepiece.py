"""Builds a tokenizer from tokenizer.model, for checkpoints without tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from vipllava_jax.files import read_bytes
from vipllava_jax.inputs.sentencepiece_model import (
    CONTROL,
    MAX_BYTES,
    UNKNOWN,
    SentencePieceModel,
    parse_model,
)
from vipllava_jax.inputs.tokenizer_fields import ExtraToken
from vipllava_jax.messages import CheckpointError, printable


def read_sentencepiece(path: Path, added: Sequence[ExtraToken] = ()) -> Tokenizer:
    """A sentencepiece BPE model with byte fallback, and added tokens -> a tokenizer with the same ids.

    If no tokens are added, as in the authors' files, the image and padding tokens are appended, as in the
    checkpoints on the Hub.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        model = parse_model(data)
    except ValueError as error:
        raise CheckpointError(
            f'{path} is not a sentencepiece model of byte pairs ({error}): use an intact copy'
        ) from None
    pieces = [piece.text for piece in model.pieces]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    unknown = next(piece.text for piece in model.pieces if piece.piece_type == UNKNOWN)
    bpe = models.BPE(vocab, _merges(model, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    bos = model.bos
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, '$A'], pair=[bos, '$A', f'{bos}:1', '$B:1'], special_tokens=[(bos, vocab[bos])]
    )
    special = [piece.text for piece in model.pieces if piece.piece_type in (CONTROL, UNKNOWN)]
    if not any(token.id is None or token.id >= len(pieces) for token in added):
        added = [*added, ExtraToken('<image>', len(pieces)), ExtraToken('<pad>', len(pieces) + 1)]
    contents = list(dict.fromkeys([*special, *(token.content for token in added)]))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in contents if token])
    for token in added:
        if token.id is not None and tokenizer.token_to_id(token.content) != token.id:
            raise CheckpointError(
                f'{path} has {len(pieces)} pieces, so that {printable(token.content, 80)} cannot have the id '
                f'{token.id}: use the tokenizer files of one model'
            )
    return tokenizer


def _merges(model: SentencePieceModel, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that join into a piece, by its score; for one piece, the latest split first."""
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in vocab
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    score = {piece.text: piece.score for piece in model.pieces}
    return sorted(pairs, key=lambda pair: (-score[pair[0] + pair[1]], -len(pair[0]), -len(pair[1])))
