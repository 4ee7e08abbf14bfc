"""The arrays of a batch of conversations, with a target for each token."""

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import numpy as np

if TYPE_CHECKING:
    from jax import Array

AnyArray: TypeAlias = Union[np.ndarray, 'Array']


class Examples(NamedTuple):
    """The arrays of a batch; a training step stacks those of its micro-batches along a leading axis A."""

    tokens: AnyArray  # BT int32, padded on the right
    targets: AnyArray  # BT int32, the id that should follow each token, or IGNORE: no loss there
    images: AnyArray  # BIhw3, I the most images of a row; uint8 until a step normalizes them
    image_counts: AnyArray  # B int32; the images after these are zeros
