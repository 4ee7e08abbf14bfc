"""The programs that limit the tokens of rows, and return rows to earlier tokens."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.engine.device import Device
from vipllava_jax.engine.limiting import rewind_rows
from vipllava_jax.engine.matching import id_bits
from vipllava_jax.engine.programs import Lane
from vipllava_jax.engine.row_settings import settings_of_row
from vipllava_jax.generation.logits.repeats import repeats_of
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.model.llama import Cache

V = 70
CFG = SimpleNamespace(text=SimpleNamespace(vocab=V))


@pytest.mark.parametrize('count', [1, 8, 19])
def test_rows_are_limited_to_allowed_ids_however_many_they_are(count):
    rng = np.random.default_rng(count)
    logits = rng.normal(size=(20, V)).astype(np.float32)
    allowed = {n: {*rng.integers(0, V, 5).tolist(), V - 1} for n in rng.permutation(20)[:count].tolist()}
    sets = {n: id_bits(ids, 3) for n, ids in allowed.items()}
    found = np.asarray(Device._limited(SimpleNamespace(cfg=CFG), jnp.asarray(logits), sets))
    for n in range(20):
        kept = [*allowed.get(n, range(V))]
        np.testing.assert_array_equal(found[n, kept], logits[n, kept])
        assert np.isneginf(np.delete(found[n], kept)).all()


def test_rows_return_to_earlier_tokens_and_their_repeats():
    ids = np.array([[3, 4, 5, 3, 4, 5, 3, 9], [1, 2, 1, 2, 1, 2, 1, 2], [7, 7, 7, 7, 7, 7, 7, 7]], np.int32)
    setting = GenerationSettings(no_repeat_ngram_size=3)
    settings = settings_of_row(setting, 0, np.zeros(0, np.int32), 0, 8, (), 8)
    repeated = {
        name: np.repeat(getattr(settings.processing, name), 3, 0) for name in ('no_repeat_ngram_size',)
    }
    newest = repeats_of(ids, np.full(3, 8), 2)
    settings = settings.replace(
        ids=jnp.asarray(ids), repeats=newest, processing=settings.processing.replace(**repeated)
    )
    lane = Lane(Cache((), ()), jnp.full(3, 9), jnp.full(3, 7))
    rows, tokens, positions = np.array([0, 2, 3, 4], np.int32), np.array([5, 7, 0, 0]), np.array([5, 2, 0, 0])
    rewound, found = rewind_rows(lane, settings, rows, tokens, positions)
    assert rewound.tokens.tolist() == [5, 9, 7]
    assert rewound.positions.tolist() == [5, 7, 2]
    lengths = np.array([6, 8, 3])
    visible = np.arange(8) < lengths[:, None]
    np.testing.assert_array_equal(
        np.where(visible, found.repeats, 0), np.where(visible, repeats_of(ids, lengths, 2), 0)
    )
