"""The words of the random requests are one token each, and keep clear of special tokens."""

import dataclasses

import numpy as np
import pytest

from vipllava_jax.benchmark.engine_requests import TEMPLATE
from vipllava_jax.benchmark.engine_words import vocabulary, words, words_processor
from vipllava_jax.benchmark.subject import PRESETS, silent
from vipllava_jax.config import VIP_LLAVA_7B
from vipllava_jax.inputs.prompts import Turn

# the authors' checkpoints have no rows for <image> and the padding token after it
AUTHORS = dataclasses.replace(VIP_LLAVA_7B, text=dataclasses.replace(VIP_LLAVA_7B.text, vocab=32000), pad=0)


@pytest.mark.parametrize('cfg', [PRESETS['7b'], PRESETS['tiny'], AUTHORS], ids=['7b', 'tiny', 'authors'])
def test_each_word_is_one_token_with_a_row_in_the_embedding(cfg):
    processor, chosen = words_processor(silent(cfg)), words(cfg)
    ids = processor.encode([Turn('user', ' '.join(chosen))], 1, TEMPLATE)
    patches = cfg.vision.patches
    assert ids[: 1 + patches] == [cfg.bos, *[cfg.image_token] * patches]
    assert [f'w{id}' for id in ids[1 + patches :]] == chosen.tolist()
    assert max(ids[1 + patches :]) < cfg.text.vocab
    assert not {cfg.bos, cfg.pad, cfg.image_token} & {*ids[1 + patches :]}
    assert len(chosen) > cfg.text.vocab - 300


def test_any_ids_are_decoded_as_they_arrive(cfg):
    for config in (cfg, PRESETS['tiny']):
        processor = words_processor(silent(config))
        ids = np.random.default_rng(0).integers(0, config.text.vocab, 300)
        stream = processor.text_stream()
        assert ''.join([*map(stream.push, ids[:, None]), stream.end()]) == processor.decode(ids)


def test_a_small_vocabulary_has_no_bytes_and_a_large_one_has_all():
    assert sum(piece.startswith('<0x') for piece in vocabulary(PRESETS['tiny'])) == 256
    small = dataclasses.replace(PRESETS['tiny'], text=dataclasses.replace(PRESETS['tiny'].text, vocab=128))
    small = dataclasses.replace(small, image_token=126, pad=127)
    assert not any(piece.startswith('<0x') for piece in vocabulary(small))
