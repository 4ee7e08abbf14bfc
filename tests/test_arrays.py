"""Trees of arrays in a folder are read and written within a memory limit, and each is stored in one piece."""

import weakref

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax import arrays

MIB = 1 << 20


@given(st.dictionaries(st.text('ab', min_size=1, max_size=3), st.integers(), max_size=5))
def test_nesting_undoes_flattening(leaves):
    tree = {'x': {'y': leaves}, **leaves} if leaves else {}
    assert arrays.nested(arrays.flat(tree)) == tree


def shapes(sizes: dict[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in sizes.items()}


def test_writing_holds_a_bounded_number_of_bytes(tmp_path, monkeypatch):
    """Each array is 1 MiB: at most three exist when the next one is requested."""
    monkeypatch.setattr(arrays, 'AT_ONCE', 3 * MIB)
    expected = shapes({f'a/x{i}': (512, 512) for i in range(12)})
    alive, counts = [], []

    def leaves():
        for path, leaf in expected.items():
            array = np.ones(leaf.shape, leaf.dtype)
            alive.append(weakref.ref(array))
            yield path, array
            del array
            counts.append(sum(each() is not None for each in alive))

    arrays.write_arrays(tmp_path / 'params', arrays.nested(expected.items()), leaves())
    assert len(counts) == 12
    assert 1 < max(counts) <= 3


def test_reading_requests_a_bounded_number_of_bytes(monkeypatch):
    """Sizes are as stored or as requested, whichever is larger; a single larger array is read alone."""
    groups = []

    def some(folder, types, sharding, expected):
        groups.append([int(path) for path in expected])
        return dict(expected)

    monkeypatch.setattr(arrays, '_read_some', some)
    monkeypatch.setattr(arrays, 'AT_ONCE', 3 * MIB)
    sizes = {'0': (512, 512), '1': (512, 512), '2': (1024, 1024), '3': (512, 512), '4': (512, 512)}
    for dtype, expected in (
        (None, [[0, 1], [2], [3, 4]]),
        (np.dtype('f2'), [[0, 1], [2], [3, 4]]),
        (np.dtype('f8'), [[0], [1], [2], [3], [4]]),
    ):
        groups.clear()
        stored = shapes(sizes)
        types = dict.fromkeys(stored, dtype) if dtype else {}
        assert [path for path, _ in arrays.read_arrays(None, stored, types, None)] == list(stored)
        assert sorted(groups) == expected


def test_every_array_is_stored_in_one_piece(tmp_path):
    """Chunks would be copied to buffers first, whose number in memory depends on the allocator."""
    import orbax.checkpoint as ocp

    expected = shapes({'a/wide': (64, 48_000), 'a/tall': (48_000, 64), 'a/flat': (3_000_000,)})
    leaves = [(path, np.zeros(leaf.shape, leaf.dtype) + 1) for path, leaf in expected.items()]
    arrays.write_arrays(tmp_path / 'params', arrays.nested(expected.items()), leaves)
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(tmp_path / 'params').item_metadata
    for path, leaf in arrays.flat(found.tree):
        assert leaf.storage.chunk_shape == expected[path].shape, path
