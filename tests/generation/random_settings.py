"""Random settings of generation, whose programs have the same shapes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

VALUES = {
    'temperature': [0.3, 0.7, 1.0, 1.3],
    'top_k': [0, 1, 5, 50, 500],
    'top_p': [0.3, 0.8, 0.95],
    'min_p': [0.02, 0.1, 0.5],
    'typical_p': [0.2, 0.7, 0.95],
    'epsilon_cutoff': [1e-3, 0.01, 0.1],
    'eta_cutoff': [1e-3, 0.02, 0.3],
    'top_h': [0.2, 0.5, 0.9],
    'repetition_penalty': [0.8, 1.05, 1.3, 2.0],
    'presence_penalty': [-0.5, 0.3, 1.0],
    'frequency_penalty': [-0.2, 0.4],
    'no_repeat_ngram_size': [1, 2, 3, 4],
    'min_new_tokens': [1, 5, 12, 24],
}
FILTERS = ['top_k', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff', 'eta_cutoff', 'top_h']
MOST_NEW = 24
B = 4


def random_settings(
    rng: np.random.Generator, vocab: int, kind: str, widths: Sequence[int] = (2, 3, 4)
) -> dict[str, Any]:
    """Settings of `kind` 'greedy', 'sampled' or 'beams', in which about one number in three is not neutral.

    The lists are of one bucket, so that all settings of a kind run the same programs. Numbers may be one per
    row. Penalties that transformers lacks are for sampled rows, which are compared step by step.
    """
    fields: dict[str, Any] = {'eos': random_ids(rng, vocab, 1) + random_ids(rng, vocab, 1)}
    fields |= random_numbers(rng, kind)
    if kind == 'beams':
        fields['num_beams'] = int(rng.choice(widths))
        fields['num_return_sequences'] = int(rng.integers(1, fields['num_beams'] + 1))
        fields['length_penalty'] = float(rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0]))
        fields['early_stopping'] = [False, True, 'never'][rng.integers(3)]
    fields |= random_lists(rng, vocab, forced=2 if kind == 'greedy' else 1)
    for name in ('remove_invalid_values', 'renormalize_logits'):
        if some(rng, 0.2):
            fields[name] = True
    return fields


def some(rng: np.random.Generator, chance: float = 0.35) -> bool:
    return rng.random() < chance


def random_ids(rng: np.random.Generator, vocab: int, most: int) -> list[int]:
    """1 to `most` ids."""
    return rng.integers(0, vocab, rng.integers(1, most + 1)).tolist()


def random_numbers(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    """The settings that are one number, or one for each row."""
    fields: dict[str, Any] = {'max_new_tokens': int(rng.integers(6, MOST_NEW + 1))}
    names = ['repetition_penalty', 'no_repeat_ngram_size', 'min_new_tokens']
    if kind == 'sampled':
        names += ['presence_penalty', 'frequency_penalty', *FILTERS]
    per_row = some(rng, 0.3)
    for name in names:
        if some(rng):
            fields[name] = rng.choice(VALUES[name], B if per_row else None).tolist()
    if kind == 'sampled':
        fields['temperature'] = rng.choice(VALUES['temperature'], B if per_row else None).tolist()
        fields['seed'] = int(rng.integers(1 << 30))
    if per_row:
        fields['max_new_tokens'] = rng.integers(6, MOST_NEW + 1, B).tolist()
    if 'min_new_tokens' in fields:
        fewest = np.minimum(fields['min_new_tokens'], fields['max_new_tokens'])
        fields['min_new_tokens'] = fewest.tolist()
    return fields


def random_lists(rng: np.random.Generator, vocab: int, forced: int) -> dict[str, Any]:
    """The settings that are lists of ids, with up to `forced` forced ids, and the decay."""

    def ids(most: int) -> list[int]:
        return random_ids(rng, vocab, most)

    biases = {tuple(ids(4)): float(rng.normal() * 3) for _ in range(6)}
    fields: dict[str, Any] = {'sequence_bias': {**biases, (1, 2, 3): 1.0}}
    fields['bad_words_ids'] = [ids(4) for _ in range(6)] + [[3, 2, 1]]
    fields['logit_bias'] = {ids(1)[0]: float(rng.normal() * 3)}
    if fields['logit_bias'].keys() & {key[0] for key in biases if len(key) == 1}:
        del fields['logit_bias']  # transformers has one bias for each sequence
    # Two forced ids have equal scores, of which the search and top-h would keep some in an arbitrary order.
    forced_ids = ids(forced)
    if some(rng):
        fields['forced_eos_token_id'] = forced_ids
    if some(rng):
        fields['suppress_tokens'] = sorted({*ids(8)} - {*forced_ids})
    if some(rng):
        fields['begin_suppress_tokens'] = ids(8)
    if some(rng):
        fields['exponential_decay_length_penalty'] = (
            int(rng.integers(0, 9)),
            float(rng.choice([0.9, 1.02, 1.2])),
        )
    return fields
