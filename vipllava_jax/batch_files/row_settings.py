"""The settings of a row: those of the batch, with what the row changes, and a seed of its own."""

import dataclasses
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from vipllava_jax.generation.setting_checks import LARGEST_SEED, NUMBERS, entries
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.messages import brief

NOT_HERE = {
    'processors': 'it holds functions in Python',
    'logprobs': 'answers are written without log-probabilities',
}


def check_batch_settings(settings: GenerationSettings) -> None:
    """Raises ValueError for settings that cannot be those of every row."""
    for name in NUMBERS:
        if isinstance(getattr(settings, name), tuple):
            raise ValueError(f'{name} is {brief(getattr(settings, name))}: give one number, for all rows')


def row_settings(
    settings: GenerationSettings, changes: Any, id: str, defaults: Mapping[str, Any]
) -> GenerationSettings:
    """The settings of the row with this id; ValueError, naming the setting, for an invalid change.

    `defaults` apply where neither the settings nor the changes say anything. A row that samples and has no
    seed of its own draws one from the seed of the batch and its id, so that its answers depend neither on its
    place nor on the other rows.
    """
    changes = {} if changes is None else changes
    if not isinstance(changes, Mapping):
        raise ValueError(f'"settings" is {brief(changes)}, expected an object such as {{"temperature": 0.5}}')
    changed = {name: value for name, value in changes.items() if value is not None}
    for name, value in changed.items():
        if name in NOT_HERE:
            raise ValueError(f'"settings": {name} cannot be set in a row: {NOT_HERE[name]}')
        if name in NUMBERS and entries(value) is not None:
            raise ValueError(f'"settings": {name} is {brief(value)}: give one number, for this row')
    for name, value in defaults.items():
        if getattr(settings, name) is None:
            changed.setdefault(name, value)
    if (
        'seed' not in changed
        and settings.seed is not None
        and changed.get('temperature', settings.temperature)
    ):
        changed['seed'] = seed_of_row(settings.seed, id)
    try:
        return dataclasses.replace(settings, **changed) if changed else settings
    except (ValueError, TypeError) as error:
        raise ValueError(f'"settings": {error}') from None


def seed_of_row(seed: Any, id: str) -> int:
    """The seed of a row, which depends on the seed of the batch and the row's id alone."""
    hashed = blake2b(f'{seed} {id}'.encode('utf-8', 'surrogatepass'), digest_size=4).digest()
    return int.from_bytes(hashed, 'big') & LARGEST_SEED
