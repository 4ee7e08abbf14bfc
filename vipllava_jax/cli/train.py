"""`vipllava train`: trains a model on rows of data."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.paths import FILE, FILE_PATH, FOLDER
from vipllava_jax.cli.pods import distributed_options, joined_pod
from vipllava_jax.cli.rows import report_broken_rows
from vipllava_jax.training.keys import Key
from vipllava_jax.training.settings import KEYS, REQUIRED, TrainingSettings
from vipllava_jax.training.settings_file import read_settings

FIELDS = TrainingSettings.__dataclass_fields__
PATHS = {'model': FOLDER, 'images': FOLDER, 'output': FOLDER, 'data': FILE, 'eval_data': FILE}


class Grouped(click.Command):
    """A command whose help lists the options in the groups of the settings' keys."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record:
                group = KEYS[parameter.name].group if parameter.name in KEYS else 'Options'
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def _option(name: str, key: Key) -> click.Option:
    """The flag of a key; without the flag, the setting is not passed."""
    flag = '--' + name.replace('_', '-')
    if key.type is bool:
        return click.Option([f'{flag}/--no-{flag[2:]}'], default=None, help=key.help + _default(name, key))
    types = {str: click.STRING, int: click.INT, float: click.FLOAT}
    repeated = ' May be repeated.' if key.is_list else ''
    return click.Option(
        [flag],
        type=click.Choice(key.choices) if key.choices else PATHS.get(name, types[key.type]),
        multiple=key.is_list,
        metavar=None if key.choices else {str: 'X', int: 'N', float: 'X'}[key.type],
        help=key.help + repeated + _default(name, key),
    )


def _default(name: str, key: Key) -> str:
    """The default of a key, for its help text; '' if that names it already, or there is none."""
    default = FIELDS[name].default
    if default is dataclasses.MISSING:
        return '' if name in REQUIRED else "  [default: the recipe's]"
    if default is None or default is False or 'default' in key.help:
        return ''
    if isinstance(default, tuple):
        return f'  [default: {", ".join(default)}]'
    text = f'{default:g}' if isinstance(default, float) else 'yes' if default is True else str(default)
    return f'  [default: {text}]'


def train(file: Path | None, **given: Any) -> None:
    """Train a model on rows of data: FILE, in TOML, has the settings, which flags of the same names override.

    An interrupted run, even one ended by SIGKILL, resumes from its last checkpoint when the same command is
    given again. Ctrl-C saves a checkpoint first. The result is in `model` or `adapter` in the output folder.

    \b
    Examples:
      vipllava train --model ./vip-llava-7b --data mine.json --images ./pictures --output ./run
      vipllava train run.toml --learning-rate 1e-4 --steps 200
      vipllava train --recipe stage-2 --model ./stage-1/model --data mix.json --output ./stage-2
    """
    keys = {name: given.pop(name) for name in KEYS}
    keys = {name: value for name, value in keys.items() if value not in (None, ())}
    read_settings(file, **keys)  # before jax is imported
    reserve()
    with joined_pod(given) as is_first:
        folder = _train(file, keys, is_first)
        click.echo(folder)


def _train(file: Path | None, keys: dict[str, Any], is_first: bool) -> Path:
    """Trains; returns the folder of the result."""
    from vipllava_jax import training
    from vipllava_jax.training.progress import ConsoleProgress

    try:
        with report_broken_rows():
            return training.train(file, progress=ConsoleProgress() if is_first else None, **keys).folder
    except training.Stopped as stopped:
        if is_first:
            click.echo(f'vipllava: {stopped}', err=True)
        sys.exit(128 + stopped.signal)
    except RuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise ValueError(
            'the device does not have enough memory: try a smaller --batch or a larger --accumulate, --remat '
            'layers, --param-dtype and --moment-dtype bfloat16, --recipe lora, a shorter --max-length, or '
            'more devices in --mesh'
        ) from None


train = Grouped(
    'train',
    callback=train,
    help=train.__doc__,
    params=[
        click.Argument(['file'], required=False, type=FILE_PATH),
        *(_option(name, key) for name, key in KEYS.items()),
        *reversed(distributed_options(_train).__click_params__),  # type: ignore[attr-defined]
    ],
)
