"""From logits to the scores by which tokens are selected, and what results report of a token."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from vipllava_jax.generation.logits.filters import filter_logits
from vipllava_jax.generation.logits.processing import Processing, Processor, process, renormalize
from vipllava_jax.generation.logits.sampling import Sampling


@struct.dataclass
class NewTokens:
    """New tokens of each row and, if asked for, their log-probabilities. T is absent for a single step."""

    tokens: Any  # BT int32; on the host all fields are NumPy arrays
    logprobs: Any = None  # BT float32, of the model, before processors and temperature
    scores: Any = None  # BT float32, what the tokens were selected by: after processors and filters
    top_ids: Any = None  # BTk int32, the most likely tokens of the model
    top_logprobs: Any = None  # BTk float32


def no_tokens(B: int, top: int | None) -> NewTokens:
    """The new tokens of no step, on the host: T is 0. `top` is as in `reported`."""
    tokens, numbers = np.zeros((B, 0), np.int32), np.zeros((B, 0), np.float32)
    if top is None:
        return NewTokens(tokens)
    of_top = [np.zeros((B, 0, top), dtype) for dtype in (np.int32, np.float32)] if top else [None, None]
    return NewTokens(tokens, numbers, numbers, *of_top)


def scores_of(
    logits: Array,
    ids: Array,
    lengths: Array,
    repeats: Array | None,
    sampling: Sampling | None,
    processing: Processing | None,
    processors: Sequence[Processor] = (),
    keep: int = 1,
) -> Array:
    """Logits BV -> the scores BV by which the next token is selected; -inf for one that cannot be.

    `ids` BS are those of prompt and answer, of which the first `lengths` B count. Only rows with a
    temperature are filtered, and their `keep` most likely tokens are kept.
    """
    if processing is not None:
        assert repeats is not None
        logits = process(logits, ids, lengths, repeats, processing, processors)
    if sampling is not None:
        filtered = filter_logits(logits, sampling, processing, keep)
        logits = jnp.where((sampling.temperature > 0)[:, None], filtered, logits)
    return logits if processing is None else renormalize(logits, processing)


def reported(tokens: Array, logits: Array, scores: Array, top: int | None) -> NewTokens:
    """The tokens B of a step with what is reported of them: nothing else if `top` is None."""
    if top is None:
        return NewTokens(tokens)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    top_logprobs, top_ids = lax.top_k(log_p, min(top, logits.shape[-1])) if top else (None, None)

    def of_token(x: Array) -> Array:
        return jnp.take_along_axis(x, tokens[:, None], axis=-1)[:, 0]

    return NewTokens(tokens, of_token(log_p), of_token(scores), top_ids, top_logprobs)
