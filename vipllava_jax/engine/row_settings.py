"""What selects the tokens of the engine's rows: arrays of one fixed size, into which all settings fit."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from vipllava_jax.engine.question import QuestionError
from vipllava_jax.generation.logits.processing import Processing, processing_of
from vipllava_jax.generation.logits.repeats import add_id
from vipllava_jax.generation.logits.sampling import Sampling
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.generation.state import pin_rows, write_ids
from vipllava_jax.sharding import mesh_of

SET_SIZE = 256  # the largest number of ids in a set of a row, such as suppress_tokens
SEQUENCES = 512  # the largest number of sequences with a bias, or of bad words
SEQUENCE = 16  # the largest number of ids in one of them
TOP = 24  # the number of likeliest tokens that are reported of a row that asks for log-probabilities


@struct.dataclass
class RowSettings:
    """What selects the tokens of each row. Every leaf leads with B."""

    sampling: Any  # Sampling with the words of its keys, B2 uint32; on the host all are NumPy arrays
    processing: Any = None  # Processing; None: no row has processors, and then there are no ids either
    ids: Any = None  # BS int32, the prompt and the answer; arbitrary after the newest token
    repeats: Any = None  # BS int32, as returned by `repeats_of`

    @property
    def sampling_with_keys(self) -> Sampling:
        sampling: Sampling = self.sampling
        return dataclasses.replace(sampling, keys=jax.random.wrap_key_data(sampling.keys))

    @property
    def known_ids(self) -> Array:
        """The ids, or one slot that nothing reads if no row has processors."""
        return jnp.zeros((len(self.sampling.keys), 1), jnp.int32) if self.ids is None else self.ids

    @property
    def without_processing(self) -> 'RowSettings':
        return RowSettings(self.sampling)


def settings_of_row(
    settings: GenerationSettings,
    sample: int,
    ids: np.ndarray,
    prompt: int,
    limit: int,
    eos: Sequence[int],
    slots: int,
) -> RowSettings:
    """The settings of one answer, B = 1, on the host; the first `prompt` of the `ids` are the prompt's.

    `eos` are the ids that end the answer. Raises QuestionError if a list is too long.
    """
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
        lengths, limits = np.array([prompt], np.int32), np.array([limit], np.int32)
        processing = processing_of(settings, lengths, limits, eos, always=True)
        seed = settings.seed if isinstance(settings.seed, int) else 0
        numbers: dict[str, Any] = {
            'temperature': np.float32(settings.per_row('temperature', 1)),
            'top_k': np.int32(settings.per_row('top_k', 1)),
            'top_p': np.float32(settings.per_row('top_p', 1)),
            'min_p': np.float32(settings.per_row('min_p', 1, none=0)),
        }
        keys = key_of_sample(np.uint32(seed), np.uint32(sample))[None]
        row = np.zeros((1, slots), np.int32)
        row[0, : len(ids)] = ids
        assert processing is not None
        found = RowSettings(Sampling(**numbers, keys=keys), _widened(processing), row, np.zeros_like(row))
        return jax.tree.map(np.asarray, found)


def neutral_settings(B: int, slots: int) -> RowSettings:
    """The settings of B greedy rows without processors, on the host."""
    row = settings_of_row(GenerationSettings(), 0, np.zeros(0, np.int32), 0, 0, (), slots)
    return jax.tree.map(lambda x: np.repeat(x, B, axis=0), row)


def _widened(processing: Processing) -> Processing:
    """The processing of a row, with all sets and sequences as wide as the engine's; zeros are no ids."""

    def widen(path: Any, x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim == 1:
            return x
        name = path[0].name
        sizes = (SEQUENCES, SEQUENCE)[: x.ndim - 1] if name in ('sequence_bias', 'bad_words') else (SET_SIZE,)
        if any(size > most for size, most in zip(x.shape[1:], sizes, strict=True)):
            shown = {'sequence_bias': 'sequence_bias and logit_bias', 'bad_words': 'bad_words_ids'}
            raise QuestionError(
                f'{shown.get(name, name)} is too long for the engine: at most {sizes[0]} entries'
                + (f' of at most {SEQUENCE} ids' if len(sizes) > 1 or name in shown else ''),
                shown.get(name, name).split()[0],
            )
        return np.pad(x, [(0, 0), *((0, most - n) for n, most in zip(x.shape[1:], sizes, strict=True))])

    return jax.tree_util.tree_map_with_path(widen, processing)


@jax.jit
def key_of_sample(seed: Array, sample: Array) -> Array:
    """The words 2 of an answer's random key: that of row 0 for the first, others fold in their number."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    key = lax.cond(sample > 0, lambda: jax.random.fold_in(key, sample), lambda: key)
    return jax.random.key_data(key)


def with_tokens(settings: RowSettings, tokens: Array, lengths: Array) -> RowSettings:
    """The settings after the new tokens B, which follow `lengths` B ids of each row."""
    if settings.processing is None:
        return settings
    ids = write_ids(settings.ids, tokens[:, None], lengths)
    return dataclasses.replace(settings, ids=ids, repeats=add_id(settings.repeats, ids, tokens))


@partial(jax.jit, donate_argnames='settings')
def put_settings(settings: RowSettings, row: Array, new: RowSettings) -> RowSettings:
    """The settings of a lane, which are donated, with those of one answer, B = 1, in its row `row`."""

    def put(x: Array, new: Array) -> Array:
        return lax.dynamic_update_slice(x, new.astype(x.dtype), (row, *[0] * (x.ndim - 1)))

    return pin_rows(jax.tree.map(put, settings, new), mesh_of(settings))


@jax.jit
def take_settings(settings: RowSettings, row: Array) -> RowSettings:
    """The settings of one row, B = 1."""
    found = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, row, 1), settings)
    return pin_rows(found, mesh_of(settings))
