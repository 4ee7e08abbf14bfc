"""The settings of a run: one list of keys, used for its TOML file and for the command's options."""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipllava_jax.files import check_encoding, read_bytes
from vipllava_jax.inputs.prompts import TEMPLATE_NAMES
from vipllava_jax.messages import printable
from vipllava_jax.training.keys import Key
from vipllava_jax.training.recipes import LORA, OPTIMIZERS, PARTS, RECIPES, REMATS, SCHEDULES, TARGETS
from vipllava_jax.weight_options import FLOATS, QUANTIZED

DATA, BATCHES, TRAINING = 'Model and data', 'Batches', 'Training'
NUMBERS, CHECKPOINTS = 'Seed and precision', 'Evaluation and checkpoints'

MAX_STEPS = 2**31 - 1  # an int32
MAX_ROWS = 2**16  # per step
MAX_FILE_BYTES = 1 << 20  # of a settings file


def _key(group: str, type: type, help: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A field of TrainingSettings; without a default, the recipe has one, or the user must give a value."""
    return dataclasses.field(default=default, metadata={'key': Key(group, type, help, **limits)})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of a run; None where the model or the device decides."""

    recipe: str = _key(
        DATA, str, 'The defaults of the other settings.', 'lora', choices=[*RECIPES], affects_results=False
    )
    model: str = _key(DATA, str, 'A folder, PyTorch or converted, or a name on the Hub.')
    data: tuple[str, ...] = _key(
        DATA, str, 'A JSON or JSONL file of rows.', is_list=True, affects_results=False
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
    fit: str = _key(DATA, str, 'How a picture becomes square.', choices=('crop', 'pad', 'squash'))
    skip_broken: bool = _key(DATA, bool, 'Skip rows that cannot be used, instead of stopping.', False)

    steps: int | None = _key(
        BATCHES, int, 'The number of steps, instead of epochs.', None, minimum=1, maximum=MAX_STEPS
    )
    epochs: float | None = _key(BATCHES, float, 'How many times each row is used.', above=0)
    batch: int = _key(BATCHES, int, 'Rows per step.', minimum=1, maximum=MAX_ROWS)
    accumulate: int = _key(
        BATCHES, int, 'Micro-batches per step; more need less memory.', 1, minimum=1, maximum=MAX_ROWS
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
        TRAINING, str, 'A part of the model that is trained.', is_list=True, choices=[*PARTS, LORA]
    )
    learning_rate: float = _key(TRAINING, float, 'The peak learning rate, after the warm-up.', minimum=0)
    projector_rate: float | None = _key(
        TRAINING, float, "The projector's peak learning rate, if it differs.", minimum=0
    )
    schedule: str = _key(TRAINING, str, 'The learning rate after the warm-up.', choices=SCHEDULES)
    warmup: float = _key(
        TRAINING, float, 'The fraction of the steps in which the learning rate rises.', minimum=0, maximum=1
    )
    optimizer: str = _key(TRAINING, str, 'The optimizer.', 'adamw', choices=OPTIMIZERS)
    beta2: float = _key(
        TRAINING, float, "AdamW's decay rate of the second moment.", 0.999, minimum=0.5, maximum=0.99999
    )
    weight_decay: float = _key(TRAINING, float, 'Not applied to norms and biases.', minimum=0)
    clip_norm: float = _key(TRAINING, float, 'The largest gradient norm; 0: no limit.', 0.0, minimum=0)
    lora_rank: int = _key(TRAINING, int, 'The rank of the LoRA adapters.', minimum=1, maximum=2**16)
    lora_alpha: float = _key(TRAINING, float, 'The adapters are scaled by alpha / rank.', above=0)
    lora_dropout: float = _key(TRAINING, float, "Dropout of the adapters' inputs.", minimum=0, maximum=0.9)
    lora_targets: tuple[str, ...] = _key(
        TRAINING, str, 'A weight of the decoder with an adapter.', TARGETS, is_list=True, choices=TARGETS
    )

    seed: int = _key(
        NUMBERS, int, 'Of the order, the marks, new weights and dropout.', 0, minimum=0, maximum=2**32 - 1
    )
    dtype: str | None = _key(
        NUMBERS, str, 'The dtype of computation.  [default: bfloat16, on a CPU float32]', None, choices=FLOATS
    )
    param_dtype: str = _key(NUMBERS, str, 'The dtype of trainable weights.', 'float32', choices=FLOATS)
    moment_dtype: str = _key(
        NUMBERS, str, "The dtype of the optimizer's first moment.", 'float32', choices=FLOATS
    )
    quantize: str | None = _key(NUMBERS, str, 'The dtype of the weights below LoRA.', None, choices=QUANTIZED)
    remat: str = _key(
        NUMBERS,
        str,
        'For less memory, compute again in the backward pass: nothing, all but matrix products, or all of '
        'each layer.',
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
        'How many of the last checkpoints are kept, besides the best one.',
        2,
        minimum=1,
        maximum=MAX_STEPS,
        affects_results=False,
    )
    eval_data: str | None = _key(
        CHECKPOINTS,
        str,
        'A file of held-out rows; the best checkpoint has the lowest loss on them.',
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
        'The checkpoint that becomes the result.',
        'last',
        choices=('last', 'best'),
        affects_results=False,
    )
    merge: bool = _key(
        CHECKPOINTS, bool, 'Write a model with the adapters merged in.', False, affects_results=False
    )
    log_every: int = _key(
        CHECKPOINTS,
        int,
        'Steps between lines of output that is not to a terminal.',
        10,
        minimum=1,
        maximum=MAX_STEPS,
        affects_results=False,
    )
    resume_anyway: bool = _key(
        CHECKPOINTS, bool, 'Resume although settings or data have changed.', False, affects_results=False
    )


KEYS: dict[str, Key] = {field.name: field.metadata['key'] for field in dataclasses.fields(TrainingSettings)}
REQUIRED = ('model', 'data', 'output')


def read_settings(file: str | os.PathLike[str] | None = None, **given: Any) -> TrainingSettings:
    """The settings of a run: keyword arguments override the TOML file, which overrides the recipe.

    Raises ValueError, in one line, for an unknown key, an invalid value, or a missing key.
    """
    values = _check_values(given, '')
    if file is not None:
        values = {**_check_values(_read_toml(Path(file)), f'{file}: '), **values}
    if missing := [name for name in REQUIRED if not values.get(name)]:
        flags = ', '.join(f'--{name}' for name in missing)
        raise ValueError(f'{", ".join(missing)}: must be given, in the file or as {flags}')
    if {'steps', 'epochs'} <= values.keys():
        raise ValueError('steps and epochs: give only one of them')
    recipe = vars(RECIPES[values.get('recipe', 'lora')])
    no_epochs = {'epochs': None} if 'steps' in values else {}
    settings = TrainingSettings(**{**recipe, **no_epochs, **values})
    _check_combinations(settings)
    return settings


def _check_combinations(settings: TrainingSettings) -> None:
    """Raises ValueError for settings that contradict each other."""
    if settings.batch % settings.accumulate:
        raise ValueError(
            f'batch {settings.batch}: cannot be split into {settings.accumulate} equal micro-batches; change '
            'batch or accumulate'
        )
    if 'llama' in settings.trains and 'lora' in settings.trains:
        raise ValueError(
            'trains llama and lora: the decoder is trained either as a whole or by an adapter; give only one'
        )
    if 'llama' in settings.trains and settings.quantize:
        raise ValueError(
            f'quantize {settings.quantize}: quantized weights cannot be trained; train lora instead of llama'
        )
    if settings.export == 'best' and settings.eval_data is None:
        raise ValueError('export best: needs eval_data, to find the best checkpoint')


def _read_toml(file: Path) -> dict[str, Any]:
    data = read_bytes(file, MAX_FILE_BYTES)
    check_encoding(file, data[:4])
    try:
        return tomllib.loads(data.decode('utf-8-sig'))
    except RecursionError:
        raise ValueError(f'{file}: not TOML: nested too deeply') from None
    except ValueError as error:
        raise ValueError(f'{file}: not TOML: {error}') from None


def _check_values(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checks that keys exist and values are valid; None is treated as missing."""
    values = {}
    for written, value in table.items():
        name = written.replace('-', '_')
        if name not in KEYS:
            nearest = difflib.get_close_matches(name[:80], KEYS, 1, 0)
            raise ValueError(
                f'{where}{printable(written, 80)} is not a setting of a run; the nearest is {nearest[0]}'
            )
        if name in values:
            raise ValueError(f'{where}{written} is given twice, with - and with _')
        if value is not None:
            values[name] = KEYS[name].check(where + written, value)
    return values
