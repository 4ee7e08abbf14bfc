"""Prefixes are found by what determines them, and dropped in the order in which they were last used."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipllava_jax.engine import prefix_store
from vipllava_jax.engine.prefix_store import PrefixStore, prefix_bytes, prefix_key
from vipllava_jax.model.llama import PrefixCache

IMAGE = 9
ONE, TWO = (hashlib.sha256(text).digest() for text in (b'1', b'2'))
SIZE = 2 * 2 * 4  # bytes of a prefix of one slot: keys and values of two layers


def prefix(slots=1):
    layers = (jnp.zeros((1, slots, 1, 1)),) * 2
    return PrefixCache(layers, layers, np.array([slots], np.int32))


def ids(*values):
    return np.array(values, np.int32)


def test_a_key_covers_the_ids_up_to_the_last_picture_and_all_pictures():
    key, length = prefix_key(ids(1, IMAGE, IMAGE, 2, 3), IMAGE, [ONE])
    assert length == 3
    assert prefix_key(ids(1, IMAGE, IMAGE, 7), IMAGE, [ONE]) == (key, 3)
    assert prefix_key(np.array([1, IMAGE, IMAGE, 7])[::1].astype(np.int64), IMAGE, [ONE]) == (key, 3)
    others = [
        prefix_key(ids(1, IMAGE, IMAGE, 2, 3), IMAGE, [TWO]),
        prefix_key(ids(5, IMAGE, IMAGE, 2, 3), IMAGE, [ONE]),
        prefix_key(ids(1, IMAGE, IMAGE, 2, IMAGE), IMAGE, [ONE, TWO]),
        prefix_key(ids(1, IMAGE, IMAGE, 2, IMAGE), IMAGE, [TWO, ONE]),
        prefix_key(ids(1, IMAGE, IMAGE, 2, IMAGE), IMAGE, [ONE, ONE]),
    ]
    assert len({key, *(other for other, _ in others)}) == 6
    assert prefix_key(ids(1, 2), IMAGE, []) is None


def test_the_least_recently_used_are_dropped_first():
    store = PrefixStore(3 * SIZE)
    for key in (b'a', b'b', b'c'):
        store.put(key, prefix())
    assert store.get(b'a') is not None
    store.put(b'd', prefix())
    assert [key in store for key in (b'a', b'b', b'c', b'd')] == [True, False, True, True]
    store.put(b'e', prefix(2))
    assert [key in store for key in (b'a', b'c', b'd', b'e')] == [False, False, True, True]
    assert (len(store), store.bytes) == (2, 3 * SIZE)
    assert store.get(b'a') is None


def test_what_is_larger_than_the_store_or_known_changes_nothing():
    store = PrefixStore(2 * SIZE)
    first = prefix()
    store.put(b'a', first)
    store.put(b'b', prefix(3))
    store.put(b'a', prefix())
    assert (len(store), store.bytes) == (1, SIZE)
    assert store.get(b'a') is first
    empty = PrefixStore(0)
    empty.put(b'a', prefix())
    assert (len(empty), empty.bytes) == (0, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.booleans()), max_size=40))
def test_the_bytes_are_those_of_what_is_stored_and_never_too_many(calls):
    store, sizes = PrefixStore(5 * SIZE), {}
    for number, slots, is_read in calls:
        key = bytes([number])
        if is_read:
            assert (store.get(key) is not None) == (key in store)
            continue
        if key not in store:
            sizes[key] = slots * SIZE
        store.put(key, prefix(slots))
        assert key in store
        assert store.bytes == sum(size for key, size in sizes.items() if key in store) <= 5 * SIZE


def test_a_beginning_is_known_when_it_is_noticed_again(monkeypatch):
    monkeypatch.setattr(prefix_store, 'MOST_NOTICED', 3)
    store = PrefixStore(SIZE)
    assert [store.notice(key) for key in (b'a', b'b', b'a', b'c', b'd')] == [False, False, True, False, False]
    assert [store.notice(key) for key in (b'a', b'b', b'c')] == [True, False, False]  # b was forgotten


@pytest.mark.parametrize('slots', [1, 7])
def test_prefix_bytes_counts_keys_and_values(slots):
    assert prefix_bytes(prefix(slots)) == slots * SIZE
