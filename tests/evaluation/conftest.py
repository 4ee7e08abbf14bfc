"""Fixtures: a tiny model, and questions about pictures of several sizes."""

import json

import pytest

from tests.makers import noise
from tests.training import runs
from vipllava_jax.loading import Model, load

WORDS = ('What is it?', 'What is within the red rectangle? ' * 9, 'Who?', 'Describe the picture. ' * 20)


@pytest.fixture(scope='session')
def model(tmp_path_factory) -> Model:
    return load(runs.small(tmp_path_factory.mktemp('small')))


@pytest.fixture
def questions(tmp_path):
    """Nine rows: four lengths of text; no, one or two pictures; marks on some."""
    rows = []
    for n in range(9):
        images = [f'{n}-{i}.png' for i in range(n % 3)]
        for i, name in enumerate(images):
            noise(60, 40 + 10 * i, seed=n).save(tmp_path / name)
        row = {'id': f'row-{n}', 'question': WORDS[n % 4] + str(n), 'answer': 'x', 'type': 'ab'[n % 2]}
        rows.append(row | ({'image': images, 'marks': ['ellipse:20,10,40,30:lime']} if images else {}))
    file = tmp_path / 'rows.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return file
