"""Reads the settings of a run from a TOML file and keyword arguments, and checks them."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.files import check_encoding, read_bytes
from vipllava_jax.mesh_text import mesh_text, parse_mesh, row_parts
from vipllava_jax.messages import printable
from vipllava_jax.training.recipes import RECIPES
from vipllava_jax.training.settings import KEYS, REQUIRED, TrainingSettings

MAX_FILE_BYTES = 1 << 20


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
    if settings.mesh is not None and (axes := parse_mesh(settings.mesh)) != 'auto':
        check_divisible(settings, axes)
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


def check_divisible(settings: TrainingSettings, axes: Mapping[str, int]) -> None:
    """Raises ValueError if the rows of a micro-batch cannot be divided over the axes of a mesh."""
    devices = row_parts(axes)
    rows = settings.batch // settings.accumulate
    if rows % devices:
        raise ValueError(
            f'batch {settings.batch}: its micro-batches of {rows} rows cannot be divided over {devices} '
            f'devices (mesh {mesh_text(axes)}); make batch a multiple of {settings.accumulate * devices}, or '
            'change accumulate or mesh'
        )


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
            raise ValueError(f'{where}{printable(written, 80)} is not a setting; did you mean {nearest[0]}?')
        if name in values:
            raise ValueError(f'{where}{written} is given twice, with - and with _')
        if value is not None:
            values[name] = KEYS[name].check(where + written, value)
    return values
