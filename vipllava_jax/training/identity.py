"""Which run a folder holds, so that it is gone on with and not mixed with another."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vipllava_jax import __version__
from vipllava_jax.folders import read_json, write_json
from vipllava_jax.training.config import KEYS, Settings, table

FILE = 'run.json'
CONTENTS = {'data': 'other rows in the data', 'weights': 'other weights in the model'}  # told of, not shown


def identity(settings: Settings) -> dict[str, Any]:
    """The settings on which every number of a run depends, and the contents of its data."""
    told: dict[str, Any] = {name: value for name, value in table(settings).items() if KEYS[name].same}
    told['data'] = [_digest(Path(file)) for file in settings.data]
    return json.loads(json.dumps(told))


def confirm(folder: Path, settings: Settings, begun: bool) -> None:
    """Notes in a run's folder what it is; if it has begun, raises ValueError should it have been another."""
    own, told = identity(settings), read_json(folder / FILE, optional=True)
    changed = changes(told.get('identity', own), own)
    if begun and changed and not settings.resume_anyway:
        raise ValueError(
            f'{folder} holds a run that differs ({changed}): to go on give the same as then, to begin anew '
            'another --output, to go on with what changed --resume-anyway'
        )
    run = {'version': __version__, 'identity': own, 'settings': table(settings)}
    write_json(folder / FILE, {**run, 'made': told.get('made', {})})


def made(folder: Path, target: Path) -> int | None:
    """The step whose weights a result of the run has, 0 if it is not yet whole, None if it has no such."""
    told = read_json(folder / FILE, optional=True).get('made', {}).get(target.name)
    return 0 if told and not target.exists() else told


def note(folder: Path, target: Path, step: int) -> None:
    """Notes in a run's folder which step's weights a result has, or 0: that it is to have one."""
    told = read_json(folder / FILE)
    write_json(folder / FILE, {**told, 'made': {**told.get('made', {}), target.name: step}})


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What settings were and are, where they differ; '' if they do not."""
    names = [name for name in now if now[name] != before.get(name)]
    return ', '.join(_change(name, before.get(name), now[name]) for name in names)


def _change(name: str, before: Any, now: Any) -> str:
    return CONTENTS.get(name) or f'{name} was {_word(before)} and is {_word(now)}'


def _word(value: Any) -> str:
    if value is None:
        return 'not given'
    return (
        ' '.join(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )


def _digest(file: Path) -> str:
    with file.open('rb') as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
