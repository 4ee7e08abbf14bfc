"""Records which run an output folder belongs to, so that another run does not resume it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from vipllava_jax.files import read_json, write_json
from vipllava_jax.messages import brief, printable
from vipllava_jax.training.config import KEYS, Settings, table
from vipllava_jax.version import __version__

FILE = 'run.json'
SHOWN = 6  # differences that a message lists
CONTENTS = {
    'data': 'other rows in the data',
    'weights': 'other weights in the model',
}  # instead of their values


def identity(settings: Settings) -> dict[str, Any]:
    """The settings on which the results of a run depend, and digests of its data."""
    found: dict[str, Any] = {name: value for name, value in table(settings).items() if KEYS[name].same}
    found['data'] = [_digest(Path(file)) for file in settings.data]
    return json.loads(json.dumps(found))


def confirm(folder: Path, settings: Settings, begun: bool) -> None:
    """Writes a run's identity to its folder; ValueError if the folder has checkpoints of another run."""
    own, recorded = identity(settings), _read(folder)
    if begun and not recorded.get('identity') and not settings.resume_anyway:
        raise ValueError(
            f'{folder / FILE} does not say which run the checkpoints beside it belong to: restore it, give '
            'another --output, or resume all the same with --resume-anyway'
        )
    changed = changes(recorded.get('identity') or own, own)
    if begun and changed and not settings.resume_anyway:
        raise ValueError(
            f'{folder} holds a run with other settings ({changed}): give the same settings to resume it, '
            'another --output for a new run, or --resume-anyway to resume with the changes'
        )
    run = {'version': __version__, 'identity': own, 'settings': table(settings)}
    write_json(folder / FILE, {**run, 'made': recorded.get('made', {})})


def made(folder: Path, target: Path) -> int | None:
    """The step whose weights a result of the run has; 0 if it is incomplete, None if it was never written."""
    step = _read(folder).get('made', {}).get(target.name)
    return 0 if step and not target.exists() else step


def note(folder: Path, target: Path, step: int) -> None:
    """Records in a run's folder which step's weights a result has, or 0 before it is written."""
    recorded = _read(folder)
    write_json(folder / FILE, {**recorded, 'made': {**recorded.get('made', {}), target.name: step}})


def _read(folder: Path) -> dict[str, Any]:
    """The content of a run's record; ValueError names an invalid field."""
    path = folder / FILE
    recorded = read_json(path, optional=True)
    parts = {name: recorded.get(name, {}) for name in ('identity', 'made')}
    wrong = {name: value for name, value in parts.items() if not isinstance(value, dict)}
    made = parts['made'] if 'made' not in wrong else {}
    wrong |= {f'made.{name}': step for name, step in made.items() if type(step) is not int or step < 0}
    for name, value in wrong.items():
        expected = 'a step' if '.' in name else 'an object'
        raise ValueError(
            f'{path}: "{name}" is {brief(value)}, expected {expected}: restore it, or give another --output'
        )
    return recorded


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Lists the settings that differ, with their values before and now; '' if none does."""
    names = [name for name in now if now[name] != before.get(name)]
    shown = [_change(name, before.get(name), now[name]) for name in names[:SHOWN]]
    return ', '.join(shown) + (f', and {len(names) - SHOWN} more' if len(names) > SHOWN else '')


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
