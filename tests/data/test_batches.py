"""A step's batch is the same whichever process makes it, and an epoch has every row once."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

import vipllava_jax as vj
from tests.data.samples import region_row, write_lines
from tests.data.test_region_prompts import ROWS
from tests.data.test_vcr import META
from tests.data.test_vcr import ROW as VCR
from tests.makers import noise
from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.conversations import IGNORE
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.data.rows import Rows
from vipllava_jax.inputs.pixels import uint8_pixels


def mixed(count):
    """Rows with no, one or two pictures, and conversations of many lengths."""
    rows = []
    for n in range(count):
        talk = [
            {'from': 'human', 'value': 'What is <bbox0>?' if n % 3 else 'Hello' * (n % 7)},
            {'from': 'gpt', 'value': 'A dog ' * (n % 11 + 1)},
        ] * (n % 2 + 1)
        row = region_row(id=f'x-{n}', conversations=talk)
        if n % 3 == 0:
            del row['image'], row['bboxes']
        elif n % 3 == 1:
            row['image'] = ['a.png', 'b.jpg']
        rows.append(row)
    return rows


@pytest.fixture
def rows(pictures) -> Rows:
    return read_rows([write_lines(pictures / 'rows.jsonl', mixed(23))])


def same(a, b):
    assert a.names == b.names
    for x, y in zip(a.examples, b.examples, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_workers_and_this_process_make_the_same_batches(rows, processor, workers):
    batches = Batches(
        rows,
        processor,
        BatchSettings(batch_size=4, seed=3, pad_to_multiple_of=16, fit='pad', workers=workers),
    )
    assert batches.steps == 6
    for step, batch in zip(range(4, 15), batches.iterate(4, 15), strict=True):
        same(
            batch,
            Batches(
                rows, processor, BatchSettings(batch_size=4, seed=3, pad_to_multiple_of=16, fit='pad')
            ).at(step),
        )


def test_a_batch_holds_padded_tokens_targets_and_images(rows, processor):
    batches = Batches(rows, processor, BatchSettings(batch_size=4, pad_to_multiple_of=16, fit='pad'))
    for step in range(6):
        batch = batches.at(step).examples
        assert [array.dtype for array in batch] == [np.int32, np.int32, np.uint8, np.int32]
        assert batch.tokens.shape == batch.targets.shape
        assert batch.tokens.shape[1] % 16 == 0
        assert batch.images.shape == (4, batch.image_counts.max(), 28, 28, 3)
        for tokens, targets, images, count in zip(*batch, strict=True):
            length = np.flatnonzero(tokens != processor.tokenizer.pad)[-1] + 1
            assert (tokens == processor.image_id).sum() == count * processor.patches
            assert images[:count].any(axis=(1, 2, 3)).all()
            assert not images[count:].any()
            known = targets[: length - 1] != IGNORE
            assert known.any()
            assert (targets[: length - 1] == tokens[1:length])[known].all()
            assert (targets[length - 1 :] == IGNORE).all()


def test_each_epoch_has_every_row_once_in_a_new_order(rows, processor):
    batches = Batches(rows, processor, BatchSettings(batch_size=4, fit='pad'))
    epochs = [[name for step in range(6 * e, 6 * e + 6) for name in batches.at(step).names] for e in (0, 1)]
    for names in epochs:
        assert sorted(names[:23]) == sorted(f'x-{n}' for n in range(23))
        assert names[23:] == names[:1]
    assert epochs[0] != epochs[1]
    assert (
        Batches(rows, processor, BatchSettings(batch_size=4, seed=1, fit='pad')).at(0).names
        != batches.at(0).names
    )


def test_marks_depend_only_on_the_epoch_and_the_seed(pictures, processor):
    rows = read_rows([write_lines(pictures / 'rows.jsonl', [region_row(marks=['ellipse:4,5,20,25'])])])

    def images_of(seed, step):
        settings = BatchSettings(batch_size=1, seed=seed, fit='pad')
        return Batches(rows, processor, settings).at(step).examples.images

    images = [images_of(*choice) for choice in ((0, 0), (0, 1), (1, 0), (1, 1), (None, 0))]
    assert len({image.tobytes() for image in images}) == 5
    fixed = vj.draw(pictures / 'a.png', [vj.Mark('ellipse', box=(4, 5, 20, 25))])
    np.testing.assert_array_equal(images[-1][0, 0], uint8_pixels(fixed, processor.image_settings, 'pad'))


def test_evaluation_batches_keep_the_order_and_ignore_repeated_rows(rows, processor):
    batches = Batches(rows, processor, BatchSettings(batch_size=4, seed=None, fit='pad'))
    results = list(batches.iterate(0, batches.steps))
    assert [name for batch in results for name in batch.names][:23] == [f'x-{n}' for n in range(23)]
    targets = results[-1].examples.targets
    assert (targets[:3] != IGNORE).any(axis=1).all()
    assert (targets[3:] == IGNORE).all()
    same(batches.at(6), batches.at(0))


def test_few_rows_are_repeated_to_fill_a_large_batch(pictures, processor):
    rows = read_rows([write_lines(pictures / 'rows.jsonl', mixed(3))])
    batches = Batches(rows, processor, BatchSettings(batch_size=8, fit='pad'))
    assert batches.steps == 1
    assert batches.at(0).names == batches.at(0).names[:3] * 2 + batches.at(0).names[:2]


def test_rows_of_every_data_set_become_batches(pictures, processor):
    (pictures / 'meta').mkdir()
    (pictures / 'meta' / '1.json').write_text(json.dumps(META))
    samples = [{'image': 'a.png', **row} for row in (*ROWS.values(), VCR)]
    rows = read_rows([write_lines(pictures / 'rows.jsonl', samples)])
    batches = Batches(rows, processor, BatchSettings(batch_size=len(samples), fit='pad'))
    for step in range(10):  # each with other random choices
        batch = batches.at(step).examples
        assert (batch.targets != IGNORE).any(axis=1).all()
        assert batch.image_counts.tolist() == [1] * len(samples)


def test_each_process_loads_the_images_of_its_rows(rows, processor):
    settings = BatchSettings(batch_size=4, seed=3, pad_to_multiple_of=16, fit='pad')
    whole = Batches(rows, processor, settings)
    parts = [Batches(rows, processor, settings, loaded=loaded) for loaded in ((0, 3), (1, 2))]
    for step in range(6):
        names, images = whole.at(step).names, whole.at(step).examples.images
        for part in parts:
            batch = part.at(step)
            assert batch.names == names
            same(batch._replace(examples=batch.examples._replace(images=images)), whole.at(step))
            np.testing.assert_array_equal(batch.examples.images, images[list(part.loaded)])


def test_a_row_whose_answer_is_cut_off_is_skipped(pictures, processor):
    long = [{'from': 'human', 'value': 'Hello ' * 300}, {'from': 'gpt', 'value': 'Hello'}]
    lines = [region_row(id=n, **({'conversations': long} if n == 1 else {})) for n in range(3)]
    notes = []
    rows = read_rows([write_lines(pictures / 'rows.jsonl', lines)])
    batches = Batches(
        rows,
        processor,
        BatchSettings(batch_size=1, seed=None, max_length=300, fit='pad'),
        report=notes.append,
    )
    assert [batch.names for batch in batches.iterate(0, 3)] == [('0',), ('2',), ('2',)]
    assert len(notes) == 1
    assert 'line 2: its question alone fills max_length 300' in notes[0]


def test_a_cropped_mark_is_reported_once(pictures, processor):
    Image.new('RGB', (90, 30)).save(pictures / 'wide.png')
    lines = [region_row(id=f'x-{n}', image='wide.png', bboxes=[[1, 1, 20, 20]]) for n in range(6)]
    rows = read_rows([write_lines(pictures / 'rows.jsonl', lines)])
    with pytest.warns(UserWarning, match='line 1: the crop cuts off the mark rectangle.*pad') as warned:
        list(Batches(rows, processor, BatchSettings(batch_size=2, seed=None)).iterate(0, 3))
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Batches(rows, processor, BatchSettings(batch_size=2, seed=None, fit='pad')).at(0)


def test_invalid_settings_are_errors_before_the_first_batch(rows, processor):
    for options, message in [
        (dict(batch_size=0), 'batch_size is 0'),
        (dict(pad_to_multiple_of=-1), 'pad_to_multiple_of is -1'),
        (dict(seed=-1), 'seed is -1: give 0 to'),
        (dict(seed=10**30), 'seed is 1'),
        (dict(seed=10**5000), 'seed is a whole number of 5001 digits'),
        (dict(batch_size=10**9), 'batch_size is 1000000000: give 1 to 65,536'),
        (dict(max_length=10**400), 'max_length is a whole number of 401 digits'),
        (dict(pad_to_multiple_of=2**31), 'pad_to_multiple_of is 2147483648'),
        (dict(template='hub'), "template 'hub' cannot be used for training"),
        (dict(fit='stretch'), "unknown fit 'stretch'"),
        (dict(max_length=8), r'line 2: its 2 image\(s\) alone are 8 tokens: max_length 8 is too short'),
    ]:
        with pytest.raises(ValueError, match=message):
            Batches(rows, processor, BatchSettings(**{'batch_size': 2, **options}))


def test_pictures_and_tokens_equal_those_of_the_processor(pictures, processor):
    row = region_row(bboxes=None, image=['a.png', 'b.jpg'])
    row['conversations'] = [{'from': 'human', 'value': 'What?'}, {'from': 'gpt', 'value': 'x'}]
    (pictures / 'l.json').write_text(json.dumps([row]))
    rows = read_rows([pictures / 'l.json'])
    batch = Batches(rows, processor, BatchSettings(batch_size=1, fit='pad')).at(0).examples
    prompt = processor('What?', [noise(40, 30), pictures / 'b.jpg'], fit='pad')
    np.testing.assert_array_equal(processor.image_settings.normalize(batch.images), prompt.images)
    n = prompt.lengths[0]
    np.testing.assert_array_equal(batch.tokens[0, :n], prompt.tokens[0, :n])
