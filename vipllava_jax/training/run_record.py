"""`run.json`: records which run an output folder belongs to, so that another run does not resume it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from vipllava_jax.files import read_json, write_json
from vipllava_jax.messages import brief, describe_changes
from vipllava_jax.training.settings import KEYS, TrainingSettings
from vipllava_jax.version import __version__

FILE = 'run.json'


def run_identity(settings: TrainingSettings) -> dict[str, Any]:
    """The settings on which the results of a run depend, and digests of its data."""
    identity: dict[str, Any] = {
        name: value for name, value in dataclasses.asdict(settings).items() if KEYS[name].affects_results
    }
    identity['data'] = [_digest(Path(file)) for file in settings.data]
    return json.loads(json.dumps(identity))


def record_run(folder: Path, settings: TrainingSettings, resumes: bool) -> None:
    """Writes a run's identity to its folder; ValueError if it resumes from the checkpoints of another run."""
    identity, record = run_identity(settings), _read_record(folder)
    if resumes and not settings.resume_anyway:
        if not record.get('identity'):
            raise ValueError(
                f'{folder / FILE} does not say which run the checkpoints in the folder belong to: restore '
                'it, give another --output, or resume without the check by --resume-anyway'
            )
        if changed := describe_changes(record['identity'], identity):
            raise ValueError(
                f'{folder} holds a run with other settings ({changed}): give the same settings to resume it, '
                'another --output for a new run, or --resume-anyway to resume with the changes'
            )
    fields = {'version': __version__, 'identity': identity, 'settings': dataclasses.asdict(settings)}
    write_json(folder / FILE, {**fields, 'exported': record.get('exported', {})})


def exported_step(folder: Path, target: Path) -> int | None:
    """The step whose weights were exported; 0 if the export is incomplete, None if there is none."""
    step = _read_record(folder).get('exported', {}).get(target.name)
    return 0 if step and not target.exists() else step


def record_export(folder: Path, target: Path, step: int) -> None:
    """Records the step whose weights are exported, or 0 before the export starts."""
    record = _read_record(folder)
    write_json(folder / FILE, {**record, 'exported': {**record.get('exported', {}), target.name: step}})


def _read_record(folder: Path) -> dict[str, Any]:
    """The content of a run's record; ValueError names an invalid field."""
    path = folder / FILE
    record = read_json(path, optional=True)
    fields = {name: record.get(name, {}) for name in ('identity', 'exported')}
    invalid = {name: value for name, value in fields.items() if not isinstance(value, dict)}
    exported = {} if 'exported' in invalid else fields['exported']
    invalid |= {
        f'exported.{name}': step for name, step in exported.items() if type(step) is not int or step < 0
    }
    for name, value in invalid.items():
        expected = 'a step' if '.' in name else 'an object'
        raise ValueError(
            f'{path}: "{name}" is {brief(value)}, expected {expected}: restore it, or give another --output'
        )
    return record


def _digest(file: Path) -> str:
    with file.open('rb') as data:
        return hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
