"""Writes small processor files, for tests that need a checkpoint folder."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = [
    'A chat between a curious human and an artificial intelligence assistant.',
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    'USER: What is within the red rectangle? ASSISTANT: A dog that sleeps on the old brown sofa.',
    '###Human: Describe the picture.###Assistant: Two people are waiting for a train.',
]
SPECIAL = ('<unk>', '<s>', '</s>')


def write_processor_files(folder: Path, image_size: int = 28, patch_size: int = 14, vocab: int = 400) -> int:
    """Writes the four files of a Llama-style processor; returns the id of `<image>`; `<pad>` has the next id.

    These are the last two of `vocab` ids, 128 to 520. From 370 ids on, all bytes have tokens, below that only
    the newline.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(vocab).save(str(folder / 'tokenizer.json'))
    files = {
        'tokenizer_config.json': {
            'bos_token': '<s>',
            'eos_token': '</s>',
            'pad_token': '<pad>',
            'unk_token': '<unk>',
            'add_bos_token': True,
            'tokenizer_class': 'PreTrainedTokenizerFast',
        },
        'preprocessor_config.json': {
            'image_processor_type': 'CLIPImageProcessor',
            'size': {'shortest_edge': image_size},
            'crop_size': {'height': image_size, 'width': image_size},
            'do_center_crop': True,
            'do_convert_rgb': True,
            'do_normalize': True,
            'do_rescale': True,
            'do_resize': True,
            'image_mean': [0.48145466, 0.4578275, 0.40821073],
            'image_std': [0.26862954, 0.26130258, 0.27577711],
            'resample': 3,
            'rescale_factor': 1 / 255,
        },
        'processor_config.json': {
            'processor_class': 'LlavaProcessor',
            'image_token': '<image>',
            'num_additional_image_tokens': 1,
            'patch_size': patch_size,
            'vision_feature_select_strategy': 'default',
        },
    }
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields, indent=1))
    return vocab - 2


def tiny_tokenizer(vocab: int = 400) -> Tokenizer:
    """A byte-pair tokenizer like Llama's, trained on a few sentences."""
    first = [*SPECIAL, *(f'<0x{byte:02X}>' for byte in (range(256) if vocab >= 370 else [10]))]
    spaced = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    learner = Tokenizer(models.BPE())
    learner.normalizer = spaced
    learner.pre_tokenizer = pre_tokenizers.Split(
        '▁', 'merged_with_next'
    )  # as in Llama's, no token spans several words
    alphabet = [chr(code) for code in range(33, 127)]
    learner.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=vocab - 2 - len(first), initial_alphabet=alphabet, show_progress=False
        ),
    )
    learnt = json.loads(learner.to_str())['model']
    pieces = [*first, *sorted(learnt['vocab'], key=learnt['vocab'].get)]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(pieces)},
            [tuple(pair) for pair in learnt['merges']],
            unk_token='<unk>',
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = spaced
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in (*SPECIAL, '<image>', '<pad>')]
    )
    assert tokenizer.get_vocab_size() == vocab
    return tokenizer


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture in which every pixel differs from its neighbours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
