"""Loading and converting: both folders have the same weights, whichever one is source."""

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax.arrays import flat
from vipllava_jax.benchmark.load_and_convert import Folders, lines
from vipllava_jax.benchmark.subject import Subject, random_params, silent
from vipllava_jax.benchmark.timing import OURS, measure_line
from vipllava_jax.placement import place


@pytest.fixture(scope='module')
def subject(cfg):
    return Subject(place(random_params(cfg, 'float32'), cfg, fuse=True), silent(cfg))


@pytest.mark.slow
def test_random_weights_are_written_in_both_formats(subject, tmp_path):
    folders = Folders(subject, None, tmp_path)
    expected = dict(subject.leaves())
    for folder in (folders.converted, folders.pytorch):
        for path, w in flat(vj.load(folder, fuse=False).params):
            np.testing.assert_array_equal(w, expected[path])


@pytest.mark.slow
def test_an_existing_folder_is_read_and_not_written_again(subject, tmp_path):
    written = Folders(subject, None, tmp_path)
    for source in (written.converted, written.pytorch):
        place = tmp_path / f'for-{source.name}'
        place.mkdir()
        before = sorted(tmp_path.iterdir())
        folders = Folders(subject, source, place)
        assert source in (folders.converted, folders.pytorch)
        assert folders.converted != folders.pytorch
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_load_and_convert_have_three_lines(subject, tmp_path):
    results = [measure_line(line, 1) for line in lines(Folders(subject, None, tmp_path), ('load', 'convert'))]
    assert [str(r.line) for r in results] == ['load, converted', 'load, PyTorch', 'convert, PyTorch']
    for result in results:
        assert not result.sides[OURS].fault
        assert (len(result.sides[OURS].samples), result.line.max_repeats) == (1, 3)
        assert result.line.output == (subject.size / 1e9, 'GB/s')
    size = sum(w.nbytes for w in jax.tree.leaves(subject.params))
    assert subject.size == size


@pytest.mark.parametrize(
    ('dtype', 'bytes_per_weight'), [pytest.param('int8', 1, marks=pytest.mark.by_hand), ('int4', 0.5)]
)
@pytest.mark.slow
def test_weights_are_quantized_when_they_are_read(cfg, tmp_path, dtype, bytes_per_weight):
    params = place(random_params(cfg, 'float32', dtype), cfg, fuse=True)
    subject = Subject(params, silent(cfg))
    assert subject.quantized == dtype
    assert bytes_per_weight < subject.weight < 1.5 * bytes_per_weight + 0.2
    folders = Folders(subject, None, tmp_path, dtype)
    for line in lines(folders, ('load', 'convert')):
        side = measure_line(line, 1).sides[OURS]
        assert not side.fault, side.fault
    found = vj.load(tmp_path / 'again', fuse=True).params
    jax.tree.map(np.testing.assert_array_equal, found, params)
