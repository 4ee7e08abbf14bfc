"""The demo model's training data: rows that match their examples, and an initial model that fits them."""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from scripts.demo import make
from tests.demo.oracle import answer
from vipllava_jax.demo import vocabulary
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.examples import example
from vipllava_jax.demo.question_types import TYPES
from vipllava_jax.demo.questions import View
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import render
from vipllava_jax.model.params import abstract
from vipllava_jax.training.settings_file import read_settings

ROWS = partial(make.rows, rows_each=3, teach=None)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    make.write_rows(folder, 'training', 6, ROWS)
    return folder


def test_rows_equal_the_examples(written):
    rows = [json.loads(line) for line in (written / 'training.jsonl').read_text().splitlines()]
    assert len({row['id'] for row in rows}) == len(rows) == 18
    for number, row in enumerate(rows[::3]):
        source = example(number)
        assert [turn['value'] for turn in row['conversations']] == [turn.text for turn in source.turns]
        assert [parse_mark(mark) for mark in row.get('marks', ())] == [(0, mark) for mark, _ in source.marks]
        if source.scene:
            assert {other['image'] for other in rows[3 * number : 3 * number + 3]} == {row['image']}
            with Image.open(written / 'pictures' / row['image']) as image:
                off = np.abs(np.asarray(image, int) - np.asarray(picture(source.scene), int))
            assert off.mean() < 3


def test_the_same_numbers_give_the_same_rows(written, tmp_path):
    make.write_rows(tmp_path, 'training', 6, ROWS)
    for path in written.rglob('*.*'):
        assert (tmp_path / path.relative_to(written)).read_bytes() == path.read_bytes()


def test_existing_files_are_not_generated_again(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    (part,) = (tmp_path / 'parts').rglob('*.jsonl')
    part.write_text('{}\n')
    (tmp_path / 'training.jsonl').unlink()
    make.write_rows(tmp_path, 'training', 6, ROWS)
    assert (tmp_path / 'training.jsonl').read_text() == '{}\n'


def test_held_out_rows_have_every_type_with_a_picture():
    examples = [one for number in range(30) for one in make.held_out(number)]
    assert {one.questions[0].type for one in examples} == {*TYPES} - {'words'}
    assert all(one.marks and len(one.turns) == 2 for one in examples)


def test_the_examples_of_a_new_kind_contain_it():
    examples = [make.taught(number, 'fish') for number in range(60)]
    kinds = [{thing.kind for thing in one.scene.things} for one in examples]
    assert np.mean(['fish' in found for found in kinds]) > 0.9
    assert any('fish' in turn.text for one in examples for turn in one.turns)
    for one in examples:
        for question in one.questions:
            assert answer(View(one.scene, one.marks), question.text) == question.answer


def test_the_model_is_small_enough_to_bundle():
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract(make.config(764)))]
    assert 3.5e6 < sum(sizes) <= 4.0e6
    assert len(set(make.config(764).taps)) == 5


def test_the_recipe_names_the_generated_files():
    recipe = read_settings(Path(make.__file__).parent / 'train.toml')
    named = (recipe.model, *recipe.data, recipe.eval_data, recipe.images)
    assert [Path(path).name for path in named] == ['start', 'training.jsonl', 'held-out.jsonl', 'pictures']
    assert recipe.trains == ('vision', 'projector', 'llama')


@pytest.mark.slow
def test_the_recipe_truncates_under_one_percent_of_rows(tmp_path):
    files = tmp_path / 'processor'
    vocabulary.write_processor(files, make.VISION.image_size, make.VISION.patch_size)
    processor = Processor.load(files)
    cfg, recipe = make.config(processor.image_id), read_settings(Path(make.__file__).parent / 'train.toml')
    rows = [one for number in range(100) for one in make.rows(number, rows_each=2, teach=None)]
    lengths = [
        len(processor.tokenizer.encode(render('vipllava', one.turns, 1))) + cfg.vision.patches for one in rows
    ]
    assert np.mean(np.array(lengths) > recipe.max_length) < 0.01
