"""The arrays that a model takes, padded to few shapes, and their short description."""

from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.inputs.padding import round_up

SHOWN_ROWS = 8  # in a notebook


class Batch(NamedTuple):
    """A model's input arrays: the tokens of each row and, in the order of its placeholders, its images."""

    tokens: np.ndarray  # BT int32, padded on the right
    lengths: np.ndarray  # B int32
    images: np.ndarray  # BIhw3 float32, I the largest number of images in a row; zeros where a row has fewer
    image_counts: np.ndarray  # B int32

    def __repr__(self) -> str:
        """The dtype and shape of each array; a tuple's own repr would print the pixels."""
        arrays = (f'{name}={describe_array(array)}' for name, array in self._asdict().items())
        return f'Batch({", ".join(arrays)})'

    def _repr_html_(self) -> str:
        """A table for a notebook: the arrays, and the tokens and images of the first rows."""
        arrays = [(name, describe_array(array)) for name, array in self._asdict().items()]
        rows = []
        if isinstance(self.lengths, np.ndarray) and isinstance(self.image_counts, np.ndarray):
            counts = list(zip(self.lengths.tolist(), self.image_counts.tolist(), strict=False))
            rows = [
                (f'row {n}', f'{t} tokens, {i} image{"" if i == 1 else "s"}')
                for n, (t, i) in enumerate(counts[:SHOWN_ROWS])
            ]
            if len(counts) > SHOWN_ROWS:
                rows.append(('…', f'{len(counts) - SHOWN_ROWS} more rows'))
        cells = ''.join(f'<tr><th>{name}</th><td>{text}</td></tr>' for name, text in [*arrays, *rows])
        return f'<table>{cells}</table>'


def describe_array(array: Any) -> str:
    """'int32[2,128]', as JAX writes it; the name of the type for what is not an array."""
    if not hasattr(array, 'shape') or not hasattr(array, 'dtype'):
        return type(array).__name__
    return f'{np.dtype(array.dtype).name}[{",".join(map(str, array.shape))}]'


def bucket(length: int) -> int:
    """The smallest positive multiple of 128 that is at least `length`: few shapes need few compilations."""
    return round_up(length, 128)
