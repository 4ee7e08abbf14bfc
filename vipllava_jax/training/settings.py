"""The settings of a run: one list of keys, used for its TOML file and for the options of the command."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from vipllava_jax.inputs.prompts import TEMPLATE_NAMES
from vipllava_jax.training.keys import Key
from vipllava_jax.training.recipes import LORA, OPTIMIZERS, PARTS, RECIPES, REMATS, SCHEDULES, TARGETS
from vipllava_jax.weight_options import FLOATS, QUANTIZED

DATA, BATCHES, TRAINING = 'Model and data', 'Batches', 'Training'
NUMBERS, CHECKPOINTS = 'Seed and precision', 'Evaluation and checkpoints'

MAX_STEPS = 2**31 - 1  # the largest int32
MAX_ROWS = 2**16  # the maximum per step


def _key(group: str, type: type, help: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A field of TrainingSettings; without a default, the recipe has one, or the user must give a value."""
    return dataclasses.field(default=default, metadata={'key': Key(group, type, help, **limits)})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of a run; None where the model or the device decides."""

    recipe: str = _key(
        DATA,
        str,
        'The recipe, which sets the defaults of the other settings.',
        'lora',
        choices=[*RECIPES],
        affects_results=False,
    )
    model: str = _key(
        DATA, str, 'The model to train: a folder, PyTorch or converted, or a name on the Hugging Face Hub.'
    )
    data: tuple[str, ...] = _key(
        DATA, str, 'A JSON or JSONL file of training rows.', is_list=True, affects_results=False
    )
    images: str | None = _key(
        DATA,
        str,
        "The folder of the rows' pictures.  [default: the folder of the file of rows]",
        None,
        affects_results=False,
    )
    output: str = _key(
        DATA, str, 'The folder of the run: checkpoints, metrics, the result.', affects_results=False
    )
    template: str = _key(DATA, str, 'The format of the prompt.', choices=TEMPLATE_NAMES)
    fit: str = _key(DATA, str, 'How a picture is made square.', choices=('crop', 'pad', 'squash'))
    skip_broken: bool = _key(DATA, bool, 'Skip rows that cannot be used, instead of stopping.', False)

    steps: int | None = _key(
        BATCHES, int, 'The number of steps, instead of epochs.', None, minimum=1, maximum=MAX_STEPS
    )
    epochs: float | None = _key(BATCHES, float, 'The number of times that each row is used.', above=0)
    batch: int = _key(BATCHES, int, 'Rows per step.', minimum=1, maximum=MAX_ROWS)
    accumulate: int = _key(
        BATCHES,
        int,
        'Micro-batches per step, whose gradients are accumulated; more need less memory.',
        1,
        minimum=1,
        maximum=MAX_ROWS,
    )
    max_length: int = _key(
        BATCHES, int, 'Tokens per row; longer rows are truncated.', minimum=16, maximum=2**20
    )
    group_by_length: bool = _key(BATCHES, bool, 'Put rows of similar length in the same batch.', True)
    workers: int | None = _key(
        BATCHES,
        int,
        'Processes that prepare batches.  [default: half the number of CPU cores, at most 8]',
        None,
        minimum=0,
        maximum=1024,
        affects_results=False,
    )

    trains: tuple[str, ...] = _key(
        TRAINING, str, 'A part of the model to train.', is_list=True, choices=[*PARTS, LORA]
    )
    learning_rate: float = _key(TRAINING, float, 'The peak learning rate, after the warm-up.', minimum=0)
    projector_rate: float | None = _key(
        TRAINING, float, "The projector's peak learning rate, if it differs from --learning-rate.", minimum=0
    )
    schedule: str = _key(
        TRAINING, str, 'The schedule of the learning rate after the warm-up.', choices=SCHEDULES
    )
    warmup: float = _key(
        TRAINING,
        float,
        'The fraction of the steps in which the learning rate rises to its peak.',
        minimum=0,
        maximum=1,
    )
    optimizer: str = _key(TRAINING, str, 'The optimizer.', 'adamw', choices=OPTIMIZERS)
    beta2: float = _key(
        TRAINING, float, "AdamW's decay rate of the second moment.", 0.999, minimum=0.5, maximum=0.99999
    )
    weight_decay: float = _key(
        TRAINING, float, 'The weight decay, which is not applied to norms and biases.', minimum=0
    )
    clip_norm: float = _key(
        TRAINING, float, 'Clip the global norm of the gradient to this; 0 for no clipping.', 0.0, minimum=0
    )
    lora_rank: int = _key(TRAINING, int, 'The rank of the LoRA adapters.', minimum=1, maximum=2**16)
    lora_alpha: float = _key(TRAINING, float, 'The adapters are scaled by alpha / rank.', above=0)
    lora_dropout: float = _key(
        TRAINING, float, "The dropout rate of the adapters' inputs.", minimum=0, maximum=0.9
    )
    lora_targets: tuple[str, ...] = _key(
        TRAINING,
        str,
        'A weight of the decoder layers that gets an adapter.',
        TARGETS,
        is_list=True,
        choices=TARGETS,
    )

    seed: int = _key(
        NUMBERS,
        int,
        'The random seed of the row order, the marks, new weights and dropout.',
        0,
        minimum=0,
        maximum=2**32 - 1,
    )
    dtype: str | None = _key(
        NUMBERS, str, 'The dtype of computation.  [default: bfloat16; float32 on a CPU]', None, choices=FLOATS
    )
    param_dtype: str = _key(NUMBERS, str, 'The dtype of trainable weights.', 'float32', choices=FLOATS)
    moment_dtype: str = _key(
        NUMBERS, str, "The dtype of the optimizer's first moment.", 'float32', choices=FLOATS
    )
    quantize: str | None = _key(
        NUMBERS,
        str,
        'Quantize the large weights of the decoder, to which LoRA adapters are added.',
        None,
        choices=QUANTIZED,
    )
    mesh: str | None = _key(
        NUMBERS,
        str,
        'The devices to train on, as axes and their sizes: fsdp=4, or data=2,tensor=2, or auto for fsdp over '
        'all devices.  [default: one device, or auto for several processes]',
        None,
        affects_results=False,
    )
    remat: str = _key(
        NUMBERS,
        str,
        'What the backward pass recomputes to save memory: nothing (none), everything but matrix products '
        '(products), or whole layers (layers).',
        choices=REMATS,
    )

    save_every: int = _key(
        CHECKPOINTS,
        int,
        'Steps between checkpoints.',
        500,
        minimum=1,
        maximum=MAX_STEPS,
        affects_results=False,
    )
    keep: int = _key(
        CHECKPOINTS,
        int,
        'The number of latest checkpoints to keep, in addition to the best one.',
        2,
        minimum=1,
        maximum=MAX_STEPS,
        affects_results=False,
    )
    eval_data: str | None = _key(
        CHECKPOINTS,
        str,
        'A file of held-out rows; the best checkpoint is the one with the lowest loss on them.',
        None,
        affects_results=False,
    )
    eval_every: int = _key(
        CHECKPOINTS,
        int,
        'Steps between evaluations on the held-out rows.',
        500,
        minimum=1,
        maximum=MAX_STEPS,
        affects_results=False,
    )
    export: str = _key(
        CHECKPOINTS,
        str,
        'The checkpoint to export as the result.',
        'last',
        choices=('last', 'best'),
        affects_results=False,
    )
    merge: bool = _key(
        CHECKPOINTS,
        bool,
        'Export a model with the adapters merged in, instead of the adapter alone.',
        False,
        affects_results=False,
    )
    log_every: int = _key(
        CHECKPOINTS,
        int,
        'Steps between lines of progress if stderr is not a terminal.',
        10,
        minimum=1,
        maximum=MAX_STEPS,
        affects_results=False,
    )
    resume_anyway: bool = _key(
        CHECKPOINTS,
        bool,
        'Resume a run even if its settings or data have changed.',
        False,
        affects_results=False,
    )


KEYS: dict[str, Key] = {field.name: field.metadata['key'] for field in dataclasses.fields(TrainingSettings)}
REQUIRED = ('model', 'data', 'output')
