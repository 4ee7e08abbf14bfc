"""A processor for random weights: each word is one token, so that prompts have exact lengths."""

from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vipllava_jax.config import Config
from vipllava_jax.inputs import tokenizer
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import IMAGE_TOKEN

BYTES = 256  # tokens of single bytes, as in Llama's vocabulary
MIN_VOCAB_WITH_BYTES = 1024


def words_processor(cfg: Config) -> Processor:
    """A processor for a model with this config; an id without another meaning is the word 'w' and the id.

    Special tokens and bytes have the ids of Llama's vocabulary and text is decoded by the same steps, so that
    encoding and decoding cost about as much as with the tokenizer of a checkpoint.
    """
    pieces = vocabulary(cfg)
    backend = Tokenizer(models.WordLevel({piece: id for id, piece in enumerate(pieces)}, unk_token='<unk>'))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    backend.pre_tokenizer = pre_tokenizers.Split('▁', 'merged_with_next')
    backend.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A <s>:1 $B:1', special_tokens=[('<s>', cfg.bos)]
    )
    special = ('<unk>', '<s>', '</s>', IMAGE_TOKEN, '<pad>')
    backend.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    vision = cfg.vision
    processor = Processor(
        folder=Path('words'),  # nothing is read from it
        tokenizer=tokenizer.Tokenizer(backend, {}),
        image_settings=ImageSettings(side=vision.image_size, edge=vision.image_size),
        image_id=cfg.image_token,
        patch=vision.patch_size,
    )
    return processor.for_model(cfg)


def vocabulary(cfg: Config) -> list[str]:
    """The text of every id: special tokens, then bytes if there is room for them, then words."""
    size = max(cfg.text.vocab, cfg.image_token + 1, cfg.pad + 1)
    special = {cfg.bos: '<s>', cfg.image_token: IMAGE_TOKEN, cfg.pad: '<pad>'}
    free = (id for id in range(size) if id not in special)
    special |= dict(zip(free, ('<unk>', '</s>'), strict=False))
    pieces = [special.get(id, f'▁w{id}') for id in range(size)]
    if cfg.text.vocab >= MIN_VOCAB_WITH_BYTES:
        places = [id for id in range(size) if id not in special][:BYTES]
        for byte, id in enumerate(places):
            pieces[id] = f'<0x{byte:02X}>'
    return pieces


def words(cfg: Config) -> np.ndarray:
    """The words of the vocabulary that a prompt may consist of."""
    pieces = vocabulary(cfg)[: cfg.text.vocab]
    return np.array([piece[1:] for piece in pieces if piece.startswith('▁')])
