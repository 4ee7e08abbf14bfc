"""Rows whose pictures are damaged: an error that names them, or other rows in their place."""

import numpy as np
import pytest

from tests.data.samples import region_row, write_lines
from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.conversations import IGNORE
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.data.rows import BrokenRow, Rows


@pytest.fixture
def damaged_rows(pictures) -> Rows:
    """A file of ten rows; the pictures of the fourth and fifth can be opened but not decoded."""
    data = (pictures / 'b.jpg').read_bytes()
    (pictures / 'cut.jpg').write_bytes(data[: len(data) // 2])
    lines = [region_row(id=f'x-{n}', image='cut.jpg' if n in (3, 4) else 'a.png') for n in range(10)]
    return read_rows([write_lines(pictures / 'rows.jsonl', lines)])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_damaged_picture_is_an_error_that_names_its_row(damaged_rows, processor, workers):
    batches = Batches(damaged_rows, processor, BatchSettings(batch_size=2, seed=None, workers=workers))
    with pytest.raises(BrokenRow, match=r"rows.jsonl, line 4: '.*cut.jpg' is damaged or cut short"):
        list(batches.iterate(0, 5))


@pytest.mark.parametrize('workers', [0, 2])
def test_the_next_good_row_replaces_a_skipped_one(damaged_rows, processor, workers):
    notes = []
    batches = Batches(
        damaged_rows,
        processor,
        BatchSettings(batch_size=2, seed=None, workers=workers, skip_broken=True),
        report=notes.append,
    )
    names = [batch.names for batch in batches.iterate(0, 10)]
    assert names[:5] == [('x-0', 'x-1'), ('x-2', 'x-5'), ('x-5', 'x-5'), ('x-6', 'x-7'), ('x-8', 'x-9')]
    assert names[5:] == names[:5]
    assert len(notes) == 2
    assert all('skipped: ' in line and 'cut.jpg' in line for line in notes)


def test_a_damaged_picture_of_one_process_does_not_change_the_rows_of_all(damaged_rows, processor):
    settings = BatchSettings(batch_size=5, seed=None, skip_broken=True)
    for loaded, messages in (((0, 1, 2), 0), ((3, 4), 2)):
        notes = []
        batch = Batches(damaged_rows, processor, settings, notes.append, loaded).at(0)
        assert batch.names == ('x-0', 'x-1', 'x-2', 'x-3', 'x-4')
        assert batch.examples.images.shape[:2] == (len(loaded), 1)
        assert len(notes) == messages
        if messages:
            assert 'without its targets: ' in notes[0]
            assert 'line 4: ' in notes[0]
            assert (batch.examples.targets[3:] == IGNORE).all()


def test_only_broken_rows_are_an_error_even_if_skipped(pictures, processor, damaged_rows):
    rows = damaged_rows.select(np.array([3, 4]))
    with pytest.raises(BrokenRow, match='line 4: this row and the 99 after it are broken'):
        Batches(rows, processor, BatchSettings(batch_size=1, seed=None, skip_broken=True), report=list).at(0)
