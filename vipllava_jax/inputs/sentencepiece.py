"""The tokenizer.model of a checkpoint without tokenizer.json, as the tokenizer that it would hold."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors


def read(path: Path, added: dict[str, int]) -> Tokenizer:
    """A sentencepiece BPE model with byte fallback, and the ids of added tokens -> a tokenizer of equal ids.

    Needs the extra `sentencepiece`. If nothing is added, as in the authors' own files, the image and padding
    tokens follow the model's own, as in the checkpoints on the Hub.
    """
    model = _load(path)
    pieces = [model.IdToPiece(id) for id in range(model.GetPieceSize())]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    unknown = pieces[model.unk_id()]
    bpe = models.BPE(vocab, _merges(model, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    bos = pieces[model.bos_id()]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{bos} $A', pair=f'{bos} $A {bos}:1 $B:1', special_tokens=[(bos, model.bos_id())]
    )
    special = [piece for piece, id in vocab.items() if model.IsControl(id) or model.IsUnknown(id)]
    if not any(id >= len(pieces) for id in added.values()):
        added = {'<image>': len(pieces), '<pad>': len(pieces) + 1}
    for token in [*special, *sorted(added, key=lambda token: added[token])]:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
    if wrong := [token for token, id in added.items() if tokenizer.token_to_id(token) != id]:
        raise ValueError(
            f'{path} has {len(pieces)} pieces, so that {", ".join(wrong)} cannot have the ids {added}'
        )
    return tokenizer


def _load(path: Path) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ImportError(
            f"to read {path}: pip install 'vipllava-jax[sentencepiece]', or put a tokenizer.json beside it"
        ) from None
    model = SentencePieceProcessor()
    try:
        model.LoadFromFile(str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f'{path} is not a sentencepiece model ({error}): get a whole copy of it') from None
    return model


def _merges(model: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third: the best third first, and of its ways the one last cut."""
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in vocab
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    score = {piece: model.GetScore(id) for piece, id in vocab.items()}
    return sorted(pairs, key=lambda pair: (-score[pair[0] + pair[1]], -len(pair[0]), -len(pair[1])))
