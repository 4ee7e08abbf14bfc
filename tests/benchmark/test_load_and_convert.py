"""Loading and converting: both folders have the same weights, whichever one is given."""

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax.arrays import flat
from vipllava_jax.benchmark.load_and_convert import Folders, lines
from vipllava_jax.benchmark.subject import Subject, random_params, silent
from vipllava_jax.benchmark.timing import OURS, measure
from vipllava_jax.placement import place


@pytest.fixture(scope='module')
def subject(cfg):
    return Subject(place(random_params(cfg, 'float32'), cfg, fuse=True), silent(cfg))


def test_random_weights_are_written_as_both_kinds(subject, tmp_path):
    folders = Folders(subject, None, tmp_path)
    expected = dict(subject.leaves())
    for folder in (folders.converted, folders.pytorch):
        for path, w in flat(vj.load(folder, fuse=False).params):
            np.testing.assert_array_equal(w, expected[path])


def test_a_folder_that_is_there_is_read_and_nothing_written_beside_it(subject, tmp_path):
    made = Folders(subject, None, tmp_path)
    for given in (made.converted, made.pytorch):
        place = tmp_path / f'for-{given.name}'
        place.mkdir()
        before = sorted(tmp_path.iterdir())
        folders = Folders(subject, given, place)
        assert given in (folders.converted, folders.pytorch)
        assert folders.converted != folders.pytorch
        assert sorted(tmp_path.iterdir()) == before


def test_lines(subject, tmp_path):
    results = [measure(line, 1) for line in lines(Folders(subject, None, tmp_path), ('load', 'convert'))]
    assert [str(r.line) for r in results] == ['load, converted', 'load, PyTorch', 'convert, PyTorch']
    for result in results:
        assert not result.sides[OURS].fault
        assert (len(result.sides[OURS].samples), result.line.max_repeats) == (1, 3)
        assert result.line.output == (subject.size / 1e9, 'GB/s')
    size = sum(w.nbytes for w in jax.tree.leaves(subject.params))
    assert subject.size == size


@pytest.mark.parametrize(('kind', 'bytes_a_weight'), [('int8', 1), ('int4', 0.5)])
@pytest.mark.slow
def test_quantised_where_they_are_read(cfg, tmp_path, kind, bytes_a_weight):
    params = place(random_params(cfg, 'float32', kind), cfg, fuse=True)
    subject = Subject(params, silent(cfg))
    assert subject.quantized == kind
    assert bytes_a_weight < subject.weight < 1.5 * bytes_a_weight + 0.2
    folders = Folders(subject, None, tmp_path, kind)
    for line in lines(folders, ('load', 'convert')):
        side = measure(line, 1).sides[OURS]
        assert not side.fault, side.fault
    found = vj.load(tmp_path / 'again', fuse=True).params
    jax.tree.map(np.testing.assert_array_equal, found, params)
