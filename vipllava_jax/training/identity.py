"""Which run a folder holds, so that it is gone on with and not mixed with another."""

import hashlib
import json
from pathlib import Path
from typing import Any

from vipllava_jax import __version__
from vipllava_jax.files import read_json, write_json
from vipllava_jax.messages import brief, printable
from vipllava_jax.training.config import KEYS, Settings, table

FILE = 'run.json'
TOLD = 6  # differences that a message tells of
CONTENTS = {'data': 'other rows in the data', 'weights': 'other weights in the model'}  # told of, not shown


def identity(settings: Settings) -> dict[str, Any]:
    """The settings on which every number of a run depends, and the contents of its data."""
    told: dict[str, Any] = {name: value for name, value in table(settings).items() if KEYS[name].same}
    told['data'] = [_digest(Path(file)) for file in settings.data]
    return json.loads(json.dumps(told))


def confirm(folder: Path, settings: Settings, begun: bool) -> None:
    """Notes in a run's folder what it is; if it has begun, raises ValueError should it have been another."""
    own, told = identity(settings), _read(folder)
    if begun and not told.get('identity') and not settings.resume_anyway:
        raise ValueError(
            f'{folder / FILE} does not say of which run the checkpoints beside it are: restore it, give '
            'another --output, or go on all the same with --resume-anyway'
        )
    changed = changes(told.get('identity') or own, own)
    if begun and changed and not settings.resume_anyway:
        raise ValueError(
            f'{folder} holds a run that differs ({changed}): to go on give the same as then, to begin anew '
            'another --output, to go on with what changed --resume-anyway'
        )
    run = {'version': __version__, 'identity': own, 'settings': table(settings)}
    write_json(folder / FILE, {**run, 'made': told.get('made', {})})


def made(folder: Path, target: Path) -> int | None:
    """The step whose weights a result of the run has, 0 if it is not yet whole, None if it has no such."""
    told = _read(folder).get('made', {}).get(target.name)
    return 0 if told and not target.exists() else told


def note(folder: Path, target: Path, step: int) -> None:
    """Notes in a run's folder which step's weights a result has, or 0: that it is to have one."""
    told = _read(folder)
    write_json(folder / FILE, {**told, 'made': {**told.get('made', {}), target.name: step}})


def _read(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it; ValueError names the field that does not hold what `confirm` writes."""
    path = folder / FILE
    told = read_json(path, optional=True)
    parts = {name: told.get(name, {}) for name in ('identity', 'made')}
    wrong = {name: value for name, value in parts.items() if not isinstance(value, dict)}
    made = parts['made'] if 'made' not in wrong else {}
    wrong |= {f'made.{name}': step for name, step in made.items() if type(step) is not int or step < 0}
    for name, value in wrong.items():
        expected = 'a step' if '.' in name else 'an object'
        raise ValueError(
            f'{path}: "{name}" is {brief(value)}, expected {expected}: restore it, or give another --output'
        )
    return told


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What settings were and are, where they differ; '' if they do not."""
    names = [name for name in now if now[name] != before.get(name)]
    told = [_change(name, before.get(name), now[name]) for name in names[:TOLD]]
    return ', '.join(told) + (f', and {len(names) - TOLD} more' if len(names) > TOLD else '')


def _change(name: str, before: Any, now: Any) -> str:
    return CONTENTS.get(name) or f'{name} was {_word(before)} and is {_word(now)}'


def _word(value: Any) -> str:
    if value is None:
        return 'not given'
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return printable(' '.join(value), 200)
    return printable(value, 200) if isinstance(value, str) else brief(value)


def _digest(file: Path) -> str:
    with file.open('rb') as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
