"""Questions about one picture share its beginning, and never that of another picture."""

import numpy as np
import pytest

from tests.makers import noise
from vipllava_jax.answering import prefixes
from vipllava_jax.evaluation import batches, evaluate
from vipllava_jax.evaluation.batches import group_cases
from vipllava_jax.evaluation.cases import read_cases
from vipllava_jax.generation import plan
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.prefix import Prefix, image_spans
from vipllava_jax.inputs.batch import Batch

MARKS = 'rectangle:4,5,20,25:red', 'rectangle:4,5,20,25:blue'
TEXTS = 'What is it? ', 'Who is it? ', 'Is this a dog or a sofa? '


@pytest.fixture
def folder(tmp_path):
    for n in range(2):
        noise(40, 30, seed=n).save(tmp_path / f'{n}.png')
    return tmp_path


def interleaved(rng, count=20):
    """The same questions about two of four pictures, two with either of two marks, in a random order."""
    which = rng.permutation([*rng.permutation(4)[:2]] * (count // 2))
    return [
        {'image': f'{n % 2}.png', 'marks': [MARKS[n // 2]], 'question': TEXTS[i % 3] * 2, 'answer': 'x'}
        for i, n in enumerate(which.tolist())
    ]


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_interleaved_pictures_get_the_answers_without_a_shared_beginning(model, folder, monkeypatch, seed):
    rows, computed = interleaved(np.random.default_rng(seed)), []
    monkeypatch.setattr(plan, 'ENOUGH_SAVED', 1)  # the prefixes of tiny pictures are short
    shared_prefix = prefixes.shared_prefix
    monkeypatch.setattr(
        batches, 'shared_prefix', lambda *given: computed.append(shared_prefix(*given)) or computed[-1]
    )
    shared = evaluate(model, rows, images=folder, max_new_tokens=6)
    assert len(computed) == 2
    assert all(len(prefix.images) == 1 for prefix in computed)
    monkeypatch.setattr(batches, 'shared_prefix', lambda *given: None)
    assert evaluate(model, rows, images=folder, max_new_tokens=6) == shared
    assert len({answer['answer'] for answer in shared.answers}) > 2


def test_batches_about_one_picture_hold_the_same_pixels(model, folder):
    rows = [row for seed in range(3) for row in interleaved(np.random.default_rng(seed))]
    grouped = group_cases(read_cases(rows, folder), model.processor, model.cfg, batch=8)
    for batch in grouped.batches:
        images = grouped.prepare(batch).batch.images
        assert not batch.one_picture or all(np.array_equal(image, images[0]) for image in images)
    assert sum(batch.one_picture for batch in grouped.batches) >= 4


def mixed_batch(cfg, rng, ids, pictures):
    """Rows with the same ids, about one picture each -> the batch, and the numbers of the pictures."""
    B = int(rng.integers(1, 9))
    which = rng.integers(len(pictures), size=B) if rng.random() < 0.7 else np.full(B, rng.integers(2))
    tokens = np.tile(np.pad(ids, (0, 9), constant_values=cfg.pad), (B, 1))
    tokens[:, len(ids)] = 3 + np.arange(B)
    lengths = np.full(B, len(ids) + 1, np.int32)
    return Batch(tokens.astype(np.int32), lengths, pictures[which][:, None], np.ones(B, np.int32)), which


def test_a_thousand_interleavings_of_two_pictures_never_cross(cfg, monkeypatch):
    """The pictures of half of them differ in a single value of a pixel."""
    rng = np.random.default_rng(0)
    placeholders = [cfg.image_token] * cfg.vision.patches
    computed = []
    monkeypatch.setattr(
        prefixes, 'compute_prefix', lambda _, ids, images, cfg: computed.append((ids, images))
    )
    for n in range(1000):
        ids = np.array([cfg.bos, 5, *placeholders, *rng.integers(3, 100, 80)])
        pictures = rng.normal(size=(2, 28, 28, 3)).astype(np.float32)
        if n % 2:
            pictures[1] = pictures[0]
            pictures[1, *rng.integers(28, size=2), rng.integers(3)] += 1e-4
        kept = [Prefix(ids, picture[None], image_spans(ids, cfg), None) for picture in pictures]
        batch, which = mixed_batch(cfg, rng, ids, pictures)
        for number, prefix in enumerate(kept):
            about_it = (which == number).all()
            assert prefix.common_length(batch) == (len(ids) if about_it else 2)
            if not about_it:
                with pytest.raises(ValueError, match=f'row {(which != number).argmax()} has other images'):
                    prefix.remainder(batch, cfg.pad)
        computed.clear()
        prefixes.shared_prefix(Model({}, cfg, None), batch)
        for ids_of_it, (image,) in computed:
            assert len(ids_of_it) == len(ids)
            assert all(np.array_equal(image, pictures[number]) for number in which)
        assert len(computed) == (len(which) > 1 and len({*which.tolist()}) == 1)
