"""Log-probabilities of given answers; each prompt is computed once for all of its answers."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.generation.finite import explain
from vipllava_jax.generation.plan import check_types
from vipllava_jax.generation.prefix import read_prompts
from vipllava_jax.generation.rows import place_rows, to_host
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.padding import pad_ids, power_of_two
from vipllava_jax.model.input_checks import check_inputs
from vipllava_jax.model.llama import AttentionSpec, PrefixCache
from vipllava_jax.model.vipllava import Params, VipLlava
from vipllava_jax.sharding import mesh_of, pin

AT_ONCE = 2**25  # logits in memory at the same time, 134 MB in float32
SHORTEST = 8  # the fewest tokens to which answers are padded; longer ones are padded to powers of two

Answers = Sequence[Sequence[int]]  # the ids of each


def score_answers(
    params: Params, batch: Batch, answers: Sequence[Answers], *, cfg: Config
) -> list[np.ndarray]:
    """Prompts A and the answers to each -> the log-probability of every answer, the sum over its ids.

    Raises TypeError and ValueError as `generate` does before anything runs, ValueError for a prompt without
    answers and an answer that is empty or exceeds the context, and if the logits hold NaN or infinity.
    """
    check_types(params, batch, None)
    check_inputs(batch.tokens, batch.images, batch.image_counts, cfg, batch.lengths)
    check_answers(batch, answers, cfg)
    A, mesh = len(answers), mesh_of(params)
    prompts = batch if A == 1 else place_rows(batch, mesh)  # a single prompt is shared by all devices
    rows = [*answers, *[answers[-1]] * (len(prompts.tokens) - A)]
    first, prefix = read_prompts(params, prompts, cfg=cfg)
    scores = [np.zeros(len(row)) for row in rows]
    for numbers, T in passes(rows, cfg.text.vocab):
        ids = [row[n] for row, of_row in zip(rows, numbers, strict=True) for n in of_row]
        inputs = pad_ids([answer[:-1] for answer in ids], T, cfg.pad)
        targets = pad_ids(ids, T + 1, -1)  # no id: it marks the end of an answer
        found = to_host(read_answers(params, first, prefix, *place_rows((inputs, targets), mesh), cfg=cfg))
        if not np.isfinite(found).all():
            raise ValueError(explain(params, batch))
        for a, of_row in enumerate(numbers):
            scores[a][of_row] = found[a * len(of_row) : (a + 1) * len(of_row)]
    return scores[:A]


def check_answers(batch: Batch, answers: Sequence[Answers], cfg: Config) -> None:
    """Raises ValueError, naming the row and the answer, if some cannot be scored."""
    if len(answers) != len(batch.tokens):
        raise ValueError(f'there are answers to {len(answers)} prompts, but {len(batch.tokens)} prompts')
    for row, (several, length) in enumerate(zip(answers, batch.lengths.tolist(), strict=True)):
        if not len(several):
            raise ValueError(f'row {row}: there are no answers to score: give one or more')
        for n, ids in enumerate(several):
            if not len(ids):
                raise ValueError(f'row {row}: answer {n} is empty: give each at least one id')
            if min(ids) < 0 or max(ids) >= cfg.text.vocab:
                raise ValueError(f'row {row}: answer {n} holds an id that the vocabulary lacks')
            if length + len(ids) > cfg.text.context:
                raise ValueError(
                    f'row {row}: a prompt of {length} tokens and the {len(ids)} of answer {n} exceed the '
                    f'context of {cfg.text.context}: shorten them'
                )


def passes(rows: Sequence[Answers], vocab: int) -> Iterator[tuple[np.ndarray, int]]:
    """Divides the answers into passes of the model -> their numbers AR, and the T to which they are padded.

    Answers of similar length are in one pass. There are few pairs of R and T, because each is compiled. A
    pass has at most AT_ONCE logits, or one answer to each prompt. Some answers are repeated.
    """
    by_length = [np.argsort([len(ids) for ids in row], kind='stable').tolist() for row in rows]
    columns = [
        [numbers[min(k, len(numbers) - 1)] for numbers in by_length] for k in range(max(map(len, rows)))
    ]

    def padded(column: list[int]) -> int:
        longest = max(len(row[n]) for row, n in zip(rows, column, strict=True))
        return power_of_two(longest - 1, SHORTEST)

    for T, group in itertools.groupby(columns, padded):
        alike = [*group]
        fitting = max(1, AT_ONCE // (len(rows) * T * vocab))
        most = 1 << fitting.bit_length() - 1  # the largest power of two that fits
        for start in range(0, len(alike), most):
            part = alike[start : start + most]
            part += [part[-1]] * (min(most, power_of_two(len(part))) - len(part))
            yield np.array(part).T, T


@partial(jax.jit, static_argnames='cfg')
def read_answers(
    params: Params, first: Array, prefix: PrefixCache, inputs: Array, targets: Array, *, cfg: Config
) -> Array:
    """The log-probabilities B of answers, of which B / A consecutive ones follow each of A prompts.

    `first` AV are the logits after the prompts. `targets` B(T+1) are the ids of the answers and then -1;
    `inputs` BT are those before the last of each.
    """
    B, T = inputs.shape

    def run(model: VipLlava) -> Array:
        x = model.embed(jnp.asarray(inputs), None)
        positions = prefix.of_rows(B)[:, None] + jnp.arange(T)
        states, _, _ = model.llama(x, AttentionSpec(positions), prefix=prefix)
        return model.llama.logits(states[-1])

    logits: Any = VipLlava(cfg).apply({'params': params}, method=run)
    of_first = log_probabilities(first, targets[:, 0].reshape(len(first), -1)).reshape(B)
    of_rest = log_probabilities(logits, targets[:, 1:, None])[..., 0]
    sums = of_first + jnp.where(targets[:, 1:] < 0, 0, of_rest).sum(axis=1)
    return pin(sums, 'B', mesh_of(params))


def log_probabilities(logits: Array, ids: Array) -> Array:
    """Logits …V and some ids …R at each place -> the log-probabilities …R of the ids; any number below 0."""
    found = jnp.take_along_axis(logits, jnp.maximum(ids, 0), axis=-1)
    return found - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
