"""The keys and values of prompts' beginnings, kept for later questions about the same pictures."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import jax
import numpy as np

from vipllava_jax.model.llama import PrefixCache

MOST_NOTICED = 4096  # keys of prompts, whether stored or not


def prefix_key(ids: np.ndarray, image_token: int, digests: Sequence[bytes]) -> tuple[bytes, int] | None:
    """A key for the beginning of a prompt up to its last picture, and its length; None without pictures.

    `digests` are those of the pictures' final pixels. A store belongs to one model, with its adapter, dtype
    and preprocessing; the template is in the ids.
    """
    if not digests:
        return None
    length = int(np.flatnonzero(ids == image_token)[-1]) + 1
    key = hashlib.sha256(np.ascontiguousarray(ids[:length], np.int32).tobytes())
    for digest in digests:
        key.update(digest)
    return key.digest(), length


class PrefixStore:
    """Prefixes by key, at most `capacity` bytes of them: the least recently used are dropped first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.bytes = capacity, 0
        self._found: OrderedDict[bytes, PrefixCache] = OrderedDict()
        self._noticed: OrderedDict[bytes, None] = OrderedDict()

    def get(self, key: bytes) -> PrefixCache | None:
        """The prefix of a key, which is now the most recently used; None if it is not there."""
        prefix = self._found.get(key)
        if prefix is not None:
            self._found.move_to_end(key)
        return prefix

    def __contains__(self, key: bytes) -> bool:
        return key in self._found

    def __len__(self) -> int:
        return len(self._found)

    def notice(self, key: bytes) -> bool:
        """Whether a prompt with this beginning was noticed before, among the last MOST_NOTICED."""
        is_known = key in self._noticed
        self._noticed[key] = None
        self._noticed.move_to_end(key)
        if len(self._noticed) > MOST_NOTICED:
            self._noticed.popitem(last=False)
        return is_known

    def put(self, key: bytes, prefix: PrefixCache) -> None:
        """Keeps a prefix, if it is not larger than the store."""
        size = prefix_bytes(prefix)
        if key in self._found or size > self.capacity:
            return
        while self.bytes + size > self.capacity:
            _, dropped = self._found.popitem(last=False)
            self.bytes -= prefix_bytes(dropped)
        self._found[key] = prefix
        self.bytes += size


def prefix_bytes(prefix: PrefixCache) -> int:
    """The bytes of the keys and values of a prefix, on all devices together."""
    return sum(x.nbytes for x in jax.tree.leaves((prefix.k, prefix.v)))
