"""Recipes: the settings of the stages in which ViP-LLaVA was trained, and of fine-tuning.

This is read before a command has set jax up, and so must not import it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipllava_jax.inputs.pixels import Fit

PARTS = {'vision': 'clip', 'projector': 'projector', 'llama': 'llama'}  # names in params
LORA = 'lora'  # can be trained like a part of the model: all adapters
TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')  # the decoder's products that can have an adapter
OPTIMIZERS = ('adamw', 'lion', 'sgd', 'adafactor')
SCHEDULES = ('cosine', 'constant')
REMATS = ('none', 'products', 'layers')


@dataclass(frozen=True)
class Recipe:
    """The default settings of a run; the defaults here are common to all of the authors' stages."""

    trains: tuple[str, ...] = ('projector', 'llama')
    learning_rate: float = 2e-5
    projector_rate: float | None = None  # None: the same as learning_rate
    schedule: str = 'cosine'
    warmup: float = 0.03
    weight_decay: float = 0.0
    epochs: float = 1.0
    batch: int = 128  # rows per step, over all devices and micro-batches
    template: str = 'vipllava'  # `llava_v1` in the authors' code
    fit: 'Fit' = 'pad'
    max_length: int = 2048
    remat: str = 'layers'
    lora_rank: int = 128
    lora_alpha: float = 256.0
    lora_dropout: float = 0.05


RECIPES = {
    # the authors' stages: image captions; the mixture with region data; region data written by GPT-4V
    'stage-1': Recipe(trains=('projector',), learning_rate=1e-3, batch=256, template='plain', fit='crop'),
    'stage-2': Recipe(),
    'stage-3': Recipe(learning_rate=2e-7),
    # fine-tuning on a task; for little data the authors recommend a rate of 2e-6 to 2e-7
    'finetune': Recipe(),
    'lora': Recipe(trains=('projector', 'lora'), learning_rate=2e-4, projector_rate=2e-5),
    'projector': Recipe(trains=('projector',)),
}
