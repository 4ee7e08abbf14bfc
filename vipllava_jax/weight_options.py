"""How weights are loaded: their dtype, quantization, adapter and layout."""

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vipllava_jax.messages import CheckpointError

if TYPE_CHECKING:
    from jax.typing import DTypeLike

FLOATS = ('float32', 'float16', 'bfloat16')
QUANTIZED = ('int8', 'int4')


@dataclass(frozen=True)
class WeightOptions:
    """How the weights of a model are loaded; raises CheckpointError for a dtype that is not supported."""

    dtype: 'DTypeLike | None' = None  # one of FLOATS, or None for that of each stored weight
    quantize: str | None = None  # one of QUANTIZED, for the large weights of the decoder
    adapter: str | os.PathLike[str] | None = None  # the folder of an adapter
    merge: bool = True  # merge the adapter into the weights that are not quantized
    fuse: bool | None = None  # join weights that have the same input; None: on a GPU

    def __post_init__(self) -> None:
        object.__setattr__(self, 'dtype', weight_dtype(self.dtype))
        if self.quantize not in (None, *QUANTIZED):
            raise CheckpointError(f'{self.quantize}: weights can be quantized to {", ".join(QUANTIZED)}')

    @property
    def dtype_to_read(self) -> Any:
        """The dtype in which weights are read: the stored one if an adapter or quantization comes after."""
        return None if self.quantize or self.adapter else self.dtype


def weight_dtype(dtype: 'DTypeLike | None') -> Any:
    """`dtype` as a numpy dtype, or None for the stored one; raises CheckpointError if it is not in FLOATS."""
    import ml_dtypes  # noqa: F401 - numpy then knows 'bfloat16'
    import numpy as np

    if dtype is None:
        return None
    with contextlib.suppress(TypeError):
        if np.dtype(dtype).name in FLOATS:
            return np.dtype(dtype)
    raise CheckpointError(f'{dtype}: not a dtype of weights; use one of {", ".join(FLOATS)}')
