"""Remembers the ids of any number of rows in about 16 bytes each."""

from hashlib import blake2b

import numpy as np

RECENT = 1 << 18  # ids in a set of Python, before they are sorted into an array
END = b'.'  # of each hash, because NumPy ignores zeros at the end of bytes
HASH = 'S16'  # the dtype of hashes


class IdSet:
    """A set of ids, stored as hashes of 120 bits: the latest in a set, the others in sorted arrays."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._arrays: list[np.ndarray] = []  # of S16, each at least twice as long as the next

    def __len__(self) -> int:
        return len(self._recent) + sum(map(len, self._arrays))

    def __contains__(self, id: str) -> bool:
        return self._holds(id_hash(id))

    def add(self, id: str) -> bool:
        """Adds an id; whether it is new."""
        hashed = id_hash(id)
        if self._holds(hashed):
            return False
        self._recent.add(hashed)
        if len(self._recent) == RECENT:
            self._arrays.append(np.sort(np.array([*self._recent], HASH)))
            self._recent.clear()
            while len(self._arrays) > 1 and len(self._arrays[-2]) < 2 * len(self._arrays[-1]):
                merged = np.concatenate([self._arrays.pop(), self._arrays.pop()])
                merged.sort()
                self._arrays.append(merged)
        return True

    def _holds(self, hashed: bytes) -> bool:
        if hashed in self._recent:
            return True
        for array in self._arrays:
            place = int(np.searchsorted(array, np.bytes_(hashed)))
            if place < len(array) and array[place] == hashed:
                return True
        return False


def unused_name(name: str, taken: IdSet) -> str:
    """Adds the name to those that are taken, with as many ' at its end as make it different from them."""
    while not taken.add(name):
        name += "'"
    return name


def id_hash(id: str) -> bytes:
    """The hash by which an id is known, of which its end is never 0."""
    return blake2b(id.encode('utf-8', 'surrogatepass'), digest_size=15).digest() + END
