import numpy as np
import pytest

from vipllava_jax.batch_files import ids
from vipllava_jax.batch_files.ids import IdSet, id_hash, unused_name


@pytest.mark.parametrize('recent', [1, 3, 1 << 18])
def test_a_set_holds_what_was_added_in_any_order(monkeypatch, rng, recent):
    monkeypatch.setattr(ids, 'RECENT', recent)
    found, expected = IdSet(), set()
    for n in rng.integers(0, 300, 1000).tolist():
        assert (f'{n}' in found) == (n in expected)
        assert found.add(f'{n}') == (n not in expected)
        expected.add(n)
        assert len(found) == len(expected)


def test_older_ids_take_16_bytes_each(monkeypatch):
    monkeypatch.setattr(ids, 'RECENT', 4)
    found = IdSet()
    for n in range(1000):
        found.add(f'{n}\ud800')
    assert sum(array.nbytes for array in found._arrays) == 16 * 1000
    assert len(found._arrays) < 10


def test_hashes_that_hold_zeros_are_found(monkeypatch):
    monkeypatch.setattr(ids, 'RECENT', 1)
    monkeypatch.setattr(ids, 'id_hash', lambda id: bytes(14) + bytes([int(id)]) + ids.END)
    found = IdSet()
    assert [found.add(f'{n}') for n in (0, 1, 0, 255)] == [True, True, False, True]
    assert np.bytes_(id_hash('x'))[-1:] == ids.END


def test_a_name_is_made_different_from_all_others():
    taken = IdSet()
    assert [unused_name('line 1', taken) for _ in range(3)] == ['line 1', "line 1'", "line 1''"]
