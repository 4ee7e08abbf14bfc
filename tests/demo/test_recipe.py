"""What the demo model is trained from: rows that say what the example says, and a model that fits them."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.demo import make
from tests.demo.oracle import answer
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.examples import example
from vipllava_jax.demo.questions import View
from vipllava_jax.inputs.marks import parse
from vipllava_jax.model.vipllava import abstract


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    make.write_rows(folder, 6, 3)
    return folder


def test_rows_say_what_the_examples_say(written):
    rows = [json.loads(line) for line in (written / 'training.jsonl').read_text().splitlines()]
    assert [row['id'] for row in rows[:4]] == [
        f'world-{n:07}-{k}' for n, k in [(0, 0), (0, 1), (0, 2), (1, 0)]
    ]
    assert len({row['id'] for row in rows}) == len(rows) == 18
    for number, row in enumerate(rows[::3]):
        made = example(number)
        assert [turn['value'] for turn in row['conversations']] == [turn.text for turn in made.turns]
        assert [parse(mark) for mark in row.get('marks', ())] == [(0, mark) for mark, _ in made.marks]
        if made.scene:
            with Image.open(written / 'pictures' / row['image']) as image:
                off = np.abs(np.asarray(image, int) - np.asarray(picture(made.scene), int))
            assert off.mean() < 2


def test_the_same_numbers_give_the_same_rows(written, tmp_path):
    make.write_rows(tmp_path, 6, 3)
    for path in written.rglob('*.*'):
        assert (tmp_path / path.relative_to(written)).read_bytes() == path.read_bytes()


def test_a_new_kind_is_taught():
    made = [make.taught(number, 'fish') for number in range(60)]
    kinds = [{thing.kind for thing in one.scene.things} for one in made]
    assert np.mean(['fish' in found for found in kinds]) > 0.9
    assert any('fish' in turn.text for one in made for turn in one.turns)
    for one in made:
        for question in one.questions:
            assert answer(View(one.scene, one.marks), question.text) == question.answer


def test_the_model_is_small_enough_to_bundle():
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract(make.config(764)))]
    assert 3.5e6 < sum(sizes) <= 4.0e6
    assert len(set(make.config(764).taps)) == 5


def test_training_is_told_of_the_files_that_are_made():
    recipe = (Path(make.__file__).parent / 'train.toml').read_text()
    assert set(re.findall(r'"/tmp/world/(.+?)"', recipe)) == {'start', 'training.jsonl', 'pictures', 'run'}
