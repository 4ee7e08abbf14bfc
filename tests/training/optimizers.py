"""Optimizers of runs that have only the settings that a test needs."""

from typing import Any

from vipllava_jax.training.optimizer import Optimizer
from vipllava_jax.training.settings_file import read_settings


def optimizer(learning_rate: float, steps: int, **settings: Any) -> Optimizer:
    """The optimizer of a run with these settings, and the defaults of full fine-tuning for the others."""
    files: dict[str, Any] = dict(model='model', data='data.json', output='output')
    return Optimizer(
        read_settings(recipe='finetune', learning_rate=learning_rate, steps=steps, **files, **settings)
    )
