"""Rows of data for tests, and a function that writes them to a file."""

import json
from pathlib import Path

TALK = [
    {'from': 'human', 'value': '<image>\nWhat is <bbox0>?'},
    {'from': 'gpt', 'value': 'A dog.'},
]
HELLO = [{'from': 'human', 'value': 'Hello'}, {'from': 'gpt', 'value': 'Hello.'}]  # without a picture


def region_row(**changes) -> dict:
    """A row about one box on a.png; a field that is changed to None is left out."""
    row = {'id': 'x-1', 'image': 'a.png', 'bboxes': [[4, 5, 20, 25]], 'conversations': TALK}
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def write_lines(path: Path, rows: list) -> Path:
    """Writes rows to a JSONL file; returns its path."""
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path
