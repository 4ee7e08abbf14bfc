"""The file next to a batch's answers that says how they were made, and whether they are complete."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.files import check_regular, read_json, write_json
from vipllava_jax.messages import brief, describe_changes

SUFFIX = '.jsonl'  # of the answers
FORMAT, VERSION = 'vipllava_batch', 1
MAX_BYTES = 1 << 20
# Settings that are known only here, and names of what is compared by its content.
NOT_COMPARED = ('drawn_seed', 'merged', 'model', 'adapter', 'images')


class Run(NamedTuple):
    """The content of the file."""

    settings: dict[str, Any]  # everything on which the answers depend
    complete: dict[str, int] | None = None  # how many answers, errors and bytes there are, if it is all


def run_path(output: Path) -> Path:
    """'out.jsonl' -> 'out.run.json'"""
    return output.with_suffix('.run.json')


def write_run(output: Path, run: Run) -> None:
    write_json(run_path(output), {FORMAT: VERSION, **run._asdict()})


def read_run(output: Path) -> Run | None:
    """What is known of a file of answers; None if nothing is. ValueError if the file is not of this kind."""
    path = run_path(output)
    if not path.exists():
        return None
    check_regular(path)
    advice = f'give another name than {output.name}'
    found = read_json(path, limit=MAX_BYTES)
    settings, complete = found.get('settings'), found.get('complete')
    if found.get(FORMAT) != VERSION or not isinstance(settings, dict):
        raise ValueError(
            f'{path} does not describe a batch (expected "{FORMAT}": {VERSION}, found '
            f'{brief(found.get(FORMAT))}), and would be overwritten: {advice}'
        )
    counts = ('answers', 'errors', 'bytes')
    is_complete = isinstance(complete, dict) and all(isinstance(complete.get(name), int) for name in counts)
    return Run(settings, complete if is_complete else None)


def check_same(output: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises ValueError, with the settings that differ, if a file's answers were made in another way."""
    now = json.loads(json.dumps(settings))
    names = [name for name in {**stored, **now} if name not in NOT_COMPARED]
    if changed := describe_changes(stored, {name: now.get(name) for name in names}):
        raise ValueError(
            f'{output} holds answers of another batch ({changed}): give the same options and the same input '
            'to continue it, or another name for the output'
        )
