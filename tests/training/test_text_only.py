"""Rows without pictures train like rows with pictures: alone, mixed, in micro-batches, as held-out rows."""

import json
import math

import numpy as np
import pytest

from tests.data.samples import write_lines
from tests.makers import noise
from tests.training import runs
from vipllava_jax import training
from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.conversations import ANSWER_ENDINGS, IGNORE
from vipllava_jax.data.examples import Examples
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.training import loop
from vipllava_jax.training.progress import ProgressListener
from vipllava_jax.training.recipes import RECIPES


def text_row(n):
    turns = [('human', f'What is {n}?'), ('gpt', f'A dog {n}.')]
    return {'id': f'text-{n}', 'conversations': [{'from': who, 'value': text} for who, text in turns]}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A model, and the folder with rows of text, rows with pictures, and a mixture of both."""
    folder = tmp_path_factory.mktemp('world')
    model, _ = runs.world(folder)
    pictured = [json.loads(line) for line in (folder / 'rows.jsonl').read_text().splitlines()]
    texts = [text_row(n) for n in range(12)]
    write_lines(folder / 'text.jsonl', texts)
    write_lines(folder / 'mixed.jsonl', [row for pair in zip(texts, pictured, strict=False) for row in pair])
    return model, folder


def run(world, output, data, recipe='projector', **more):
    model, folder = world
    keys = dict(model=model, data=folder / data, output=output, recipe=recipe, batch=4, workers=0)
    training.train(**{**keys, 'steps': 3, 'learning_rate': 1e-3, 'warmup': 0.0, **more})
    return runs.metrics(output)


@pytest.mark.parametrize('accumulate', [1, 2, 4])
def test_rows_without_pictures_can_be_trained(world, tmp_path, accumulate):
    held_out_keys = dict(eval_data=world[1] / 'text.jsonl', eval_every=2)
    records = run(world, tmp_path / 'run', 'text.jsonl', accumulate=accumulate, **held_out_keys)
    assert [record['grad_norm'] for record in records] == [0, 0, 0]  # no picture reaches the projector
    assert all(math.isfinite(record['loss']) and record['target_tokens'] > 0 for record in records)
    assert ['eval_loss' in record for record in records] == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('held_out_file', 'group_by_length'),
    [
        pytest.param('text.jsonl', True, marks=pytest.mark.by_hand),
        ('held.jsonl', False),
        ('mixed.jsonl', True),
    ],
)
def test_rows_with_and_without_pictures_can_be_mixed(world, tmp_path, group_by_length, held_out_file):
    more = dict(
        group_by_length=group_by_length, accumulate=2, eval_data=world[1] / held_out_file, eval_every=2
    )
    records = run(world, tmp_path / 'run', 'mixed.jsonl', **more, steps=5)
    assert len(records) == 5
    norms = [record['grad_norm'] for record in records]
    assert max(norms) > 0
    assert 0 in norms or not group_by_length, 'else no batch of text alone has been tried'


@pytest.mark.slow  # but stage-2 and stage-3, which train as finetune does
@pytest.mark.parametrize('recipe', [name for name in RECIPES if name not in ('stage-2', 'stage-3')])
def test_every_recipe_accepts_rows_without_pictures(world, tmp_path, recipe):
    more = {'lora_rank': 2} if recipe == 'lora' else {}
    for record in run(world, tmp_path / 'run', 'text.jsonl', recipe, steps=2, accumulate=2, **more):
        assert math.isfinite(record['loss'])


@pytest.mark.parametrize('template', ANSWER_ENDINGS)
def test_answers_without_pictures_are_targets_in_every_template(tmp_path, processor, template):
    rows = read_rows([write_lines(tmp_path / 'text.jsonl', [text_row(n) for n in range(5)])])
    settings = BatchSettings(batch_size=5, seed=None, template=template, pad_to_multiple_of=16)
    batch = Batches(rows, processor, settings).at(0).examples
    assert batch.images.shape[1] == 0
    assert batch.image_counts.tolist() == [0] * 5
    for n, (tokens, targets) in enumerate(zip(batch.tokens, batch.targets, strict=True)):
        is_target = targets != IGNORE
        np.testing.assert_array_equal(targets[:-1][is_target[:-1]], tokens[1:][is_target[:-1]])
        assert f'A dog {n}.' in processor.decode(targets[is_target])
        assert 'What' not in processor.decode(targets[is_target])


@pytest.mark.parametrize('images', [0, 1, 2])
@pytest.mark.parametrize('count', [1, 2, 4])
def test_a_batch_is_split_with_any_number_of_pictures(images, count):
    tokens = np.arange(4 * 8).reshape(4, 8)
    pictures = np.stack([[noise(28, 28)] * images for _ in range(4)]).reshape(4, images, 28, 28, 3)
    batch = Examples(tokens, tokens, pictures, np.full(4, images))
    parts = loop.split_batch(batch, count)
    assert parts.tokens.shape == (count, 4 // count, 8)
    assert parts.images.shape == (count, 4 // count, images, 28, 28, 3)
    np.testing.assert_array_equal(np.concatenate(parts.images), pictures)


def test_truncated_rows_are_counted_before_the_first_step(world, tmp_path):
    class Listener(ProgressListener):
        def run_started(self, description, done, steps, log_every):
            self.description = description

    folder, listener = world[1], Listener()
    question = 'What is it? ' * 60
    turns = [('human', 'What?'), ('gpt', 'A dog.'), ('human', question), ('gpt', 'A sofa.')]
    long = [{'from': who, 'value': text} for who, text in turns]
    rows = [*(text_row(n) for n in range(6)), {'id': 'long', 'conversations': long}]
    write_lines(folder / 'cut.jsonl', [*rows, {'id': 'lost', 'conversations': long[2:]}])
    run(
        world,
        tmp_path / 'run',
        'cut.jsonl',
        steps=1,
        max_length=200,
        eval_data=folder / 'cut.jsonl',
        progress=listener,
    )
    cut = '8 rows, none broken, 2 truncated to max_length 200, 1 of them without an answer and skipped'
    assert listener.description['data'] == cut
    assert '2 truncated to max_length 200, 1 of' in listener.description['held out']


def test_a_max_length_without_answers_is_an_error_before_weights_are_read(world, tmp_path, monkeypatch):
    monkeypatch.setattr('vipllava_jax.training.prepare.initial_state', None)
    with pytest.raises(
        ValueError, match='max_length 16 leaves no answer in any of the 12 rows of .*text.jsonl'
    ):
        run(world, tmp_path / 'run', 'text.jsonl', max_length=16)
    assert not (tmp_path / 'run').exists()
