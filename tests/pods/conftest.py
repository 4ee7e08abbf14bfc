"""Fixtures: a tiny model's folder and questions about pictures, on the disk that all processes share."""

import json

import pytest

from tests.cli.conftest import vipllava  # noqa: F401
from tests.makers import noise


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Twenty questions about pictures, in the working directory of the command."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for n in range(20):
        noise(40, 30, seed=n).save(tmp_path / f'{n}.png')
        row = {'id': f'q-{n}', 'image': f'{n}.png', 'marks': ['arrow:4,5,20,25:red'], 'answer': ['x']}
        rows.append({**row, 'question': f'What is <bbox> {n}?', 'type': 'ab'[n // 10]})
    file = tmp_path / 'rows.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return file
