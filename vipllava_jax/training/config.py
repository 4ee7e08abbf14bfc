"""The settings of a run: one list of keys, used for its TOML file and for the command's options."""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.files import check_encoding, read_bytes
from vipllava_jax.inputs.prompts import TEMPLATE_NAMES
from vipllava_jax.messages import brief, printable
from vipllava_jax.training.recipes import LORA, OPTIMIZERS, PARTS, RECIPES, REMATS, SCHEDULES, TARGETS
from vipllava_jax.weight_options import FLOATS, QUANTIZED

DATA, LENGTH, TRAINS, NUMBERS, KEPT = (
    *('Model and data', 'Length and batches', 'What trains, and how fast'),
    *('Numbers', 'What is watched and kept'),
)


STEPS = 2**31 - 1  # the largest step number, an int32
ROWS = 2**16  # the most rows per step
LARGEST = 3e38  # about the largest float32: larger numbers would become infinite
ENTRIES = 1000  # the most entries of a list
TOML = 1 << 20  # the most bytes of a settings file


class Key(NamedTuple):
    """The allowed values of a setting, and its help text."""

    group: str
    kind: type
    help: str
    many: bool = False
    among: Sequence[str] = ()
    least: float | None = None
    above: float | None = None  # an exclusive lower bound
    most: float | None = None
    same: bool = True  # whether a resumed run must have the same value


def _key(group: str, kind: type, help: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A field of Settings; without a default, the recipe's value is used, or the user must give one."""
    return dataclasses.field(default=default, metadata={'key': Key(group, kind, help, **limits)})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run; None where the model or the device decides."""

    recipe: str = _key(DATA, str, 'What decides where you do not.', 'lora', among=[*RECIPES], same=False)
    model: str = _key(DATA, str, 'A folder, PyTorch or converted, or a name on the Hub.')
    data: tuple[str, ...] = _key(DATA, str, 'A JSON or JSONL file of rows.', many=True, same=False)
    images: str | None = _key(
        DATA,
        str,
        "Where the rows' pictures are.  [default: beside the file that names them]",
        None,
        same=False,
    )
    output: str = _key(DATA, str, 'The folder of the run: checkpoints, metrics, the model.', same=False)
    template: str = _key(DATA, str, "The prompt's wording.", among=TEMPLATE_NAMES)
    fit: str = _key(DATA, str, 'How a picture becomes square.', among=('crop', 'pad', 'squash'))
    skip_broken: bool = _key(DATA, bool, 'Leave rows out that cannot be used, instead of stopping.', False)

    steps: int | None = _key(
        LENGTH, int, 'How many steps; or say how many epochs.', None, least=1, most=STEPS
    )
    epochs: float | None = _key(LENGTH, float, 'How often each row is seen.', above=0)
    batch: int = _key(LENGTH, int, 'Rows a step.', least=1, most=ROWS)
    accumulate: int = _key(
        LENGTH, int, 'Parts in which a step is computed, for less memory.', 1, least=1, most=ROWS
    )
    max_length: int = _key(
        LENGTH, int, 'The most tokens of a row; what is longer is cut.', least=16, most=2**20
    )
    group_by_length: bool = _key(LENGTH, bool, 'Rows of like length share a batch.', True)
    workers: int | None = _key(
        LENGTH,
        int,
        'Processes that read pictures.  [default: one for two cores, at most 8]',
        None,
        least=0,
        most=1024,
        same=False,
    )

    trains: tuple[str, ...] = _key(TRAINS, str, 'A part that trains.', many=True, among=[*PARTS, LORA])
    learning_rate: float = _key(TRAINS, float, 'The highest, after warm-up.', least=0)
    projector_rate: float | None = _key(TRAINS, float, "The projector's own.", least=0)
    schedule: str = _key(TRAINS, str, 'How the rate goes on after that.', among=SCHEDULES)
    warmup: float = _key(TRAINS, float, 'The part of the steps in which the rate rises.', least=0, most=1)
    optimizer: str = _key(TRAINS, str, 'What moves the weights.', 'adamw', among=OPTIMIZERS)
    beta2: float = _key(TRAINS, float, "AdamW's, of the mean of squares.", 0.999, least=0.5, most=0.99999)
    weight_decay: float = _key(TRAINS, float, 'Of all but norms and biases.', least=0)
    clip: float = _key(TRAINS, float, 'The largest norm of a gradient; 0 for any.', 0.0, least=0)
    lora_rank: int = _key(TRAINS, int, 'Of the pairs that LoRA adds.', least=1, most=2**16)
    lora_alpha: float = _key(TRAINS, float, 'Their scale is alpha / rank.', above=0)
    lora_dropout: float = _key(TRAINS, float, 'Of what they read.', least=0, most=0.9)
    lora_targets: tuple[str, ...] = _key(
        TRAINS, str, 'A product of the decoder that gets one.', TARGETS, many=True, among=TARGETS
    )

    seed: int = _key(
        NUMBERS, int, 'Of the order, the marks, new weights and dropout.', 0, least=0, most=2**32 - 1
    )
    dtype: str | None = _key(
        NUMBERS, str, 'What is computed in.  [default: bfloat16, on a CPU float32]', None, among=FLOATS
    )
    param_dtype: str = _key(NUMBERS, str, 'What weights are kept in that train.', 'float32', among=FLOATS)
    moment_dtype: str = _key(
        NUMBERS, str, "What the optimizer's first moment is kept in.", 'float32', among=FLOATS
    )
    quantize: str | None = _key(NUMBERS, str, 'Of the weights beneath LoRA.', None, among=QUANTIZED)
    remat: str = _key(
        NUMBERS,
        str,
        'What of a layer is computed twice, for less memory.',
        among=REMATS,
    )

    save_every: int = _key(KEPT, int, 'Steps between two checkpoints.', 500, least=1, most=STEPS, same=False)
    keep: int = _key(
        KEPT, int, 'Checkpoints that are kept, besides the best.', 2, least=1, most=STEPS, same=False
    )
    eval_data: str | None = _key(
        KEPT, str, 'Held-out rows; their mean loss tells which is best.', None, same=False
    )
    eval_every: int = _key(
        KEPT, int, 'Steps between two looks at them.', 500, least=1, most=STEPS, same=False
    )
    export: str = _key(
        KEPT, str, 'Which state becomes the model.', 'last', among=('last', 'best'), same=False
    )
    merge: bool = _key(KEPT, bool, 'Write a whole model, with what LoRA learnt in it.', False, same=False)
    log_every: int = _key(
        KEPT, int, 'Steps between two lines where there is no terminal.', 10, least=1, most=STEPS, same=False
    )
    resume_anyway: bool = _key(KEPT, bool, 'Go on although settings or data changed.', False, same=False)


KEYS: dict[str, Key] = {field.name: field.metadata['key'] for field in dataclasses.fields(Settings)}
NEEDED = ('model', 'data', 'output')


def settings(file: str | os.PathLike[str] | None = None, **given: Any) -> Settings:
    """The settings of a run: keyword arguments override the TOML file, which overrides the recipe.

    Raises ValueError, in one line, for an unknown key, an invalid value, or a missing key.
    """
    named = _checked(given, '')
    if file is not None:
        named = {**_checked(_table(Path(file)), f'{file}: '), **named}
    if missing := [name for name in NEEDED if not named.get(name)]:
        raise ValueError(f'{", ".join(missing)}: must be given, in the file or as --{missing[0]}')
    if {'steps', 'epochs'} <= named.keys():
        raise ValueError('steps and epochs: give one of them')
    recipe = vars(RECIPES[named.get('recipe', 'lora')])
    result = Settings(**{**recipe, **({'epochs': None} if 'steps' in named else {}), **named})
    if result.batch % result.accumulate:
        raise ValueError(
            f'batch {result.batch} cannot be computed in {result.accumulate} equal parts: see accumulate'
        )
    if 'llama' in result.trains and 'lora' in result.trains:
        raise ValueError(
            'trains llama and lora: a decoder that trains as a whole has no adapter; give one of them'
        )
    if 'llama' in result.trains and result.quantize:
        raise ValueError(
            f'quantize {result.quantize}: such weights cannot be trained; let lora train, not llama'
        )
    if result.export == 'best' and result.eval_data is None:
        raise ValueError('export best: needs eval_data, to find the best checkpoint')
    return result


def table(settings: Settings) -> dict[str, Any]:
    """The settings as a dict."""
    return {name: getattr(settings, name) for name in KEYS}


def _table(file: Path) -> dict[str, Any]:
    data = read_bytes(file, TOML)
    check_encoding(file, data[:4])
    try:
        return tomllib.loads(data.decode('utf-8-sig'))
    except RecursionError:
        raise ValueError(f'{file}: not TOML: nested too deeply') from None
    except ValueError as error:
        raise ValueError(f'{file}: not TOML: {error}') from None


def _checked(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checks that keys exist and values are valid; None is treated as missing."""
    checked = {}
    for written, value in table.items():
        name = written.replace('-', '_')
        if name not in KEYS:
            near = difflib.get_close_matches(name[:80], KEYS, 1, 0)
            raise ValueError(
                f'{where}{printable(written, 80)} is not a setting of a run; the nearest is {near[0]}'
            )
        if name in checked:
            raise ValueError(f'{where}{written} is given twice, with - and with _')
        if value is not None:
            checked[name] = _value(where + written, value, KEYS[name])
    return checked


def _value(name: str, value: Any, key: Key) -> Any:
    if not key.many:
        return _one(name, value, key)
    values = [value] if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(values, (list, tuple)):
        raise ValueError(f'{name} is {brief(value)}, expected a list')
    if not 0 < len(values) <= ENTRIES:
        raise ValueError(f'{name} is a list of {len(values)} entries, expected 1 to {ENTRIES}')
    return tuple(_one(name, one, key) for one in values)


def _one(name: str, value: Any, key: Key) -> Any:
    kinds = {str: 'a text', int: 'a whole number', float: 'a number', bool: 'true or false'}
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if key.kind is float and type(value) is int and abs(value) <= LARGEST:
        value = float(value)
    # an int that is too large for a float is reported as out of range
    kind = float if key.kind is float and type(value) is int else type(value)
    if kind is not key.kind:
        raise ValueError(f'{name} is {brief(value)}, expected {kinds[key.kind]}')
    if key.among and value not in key.among:
        raise ValueError(f'{name} is {brief(value)}, expected one of {", ".join(key.among)}')
    if key.kind is str and (not value or '\0' in value):
        raise ValueError(f'{name} is {brief(value)}, expected a text that is not empty and has no NUL')
    if key.kind in (int, float) and not _within(value, key):
        raise ValueError(f'{name} is {brief(value)}, expected {_range(key)}')
    return value


def _within(value: float, key: Key) -> bool:
    """Whether a number is in the range of its key; NaN never is."""
    least = -LARGEST if key.least is None else key.least
    most = LARGEST if key.most is None else key.most
    return least <= value <= most and (key.above is None or value > key.above)


def _range(key: Key) -> str:
    """The range of a key's values, for messages."""
    number = ',d' if key.kind is int else 'g'
    if key.above is not None:
        return f'more than {key.above:g}, and finite'
    assert key.least is not None
    if key.most is None:
        return f'{key.least:g} or more, and finite'
    return f'{key.least:{number}} to {key.most:{number}}'
