"""The axes of a mesh, and their text form, as in `--mesh tensor=4,data=2`; jax is not imported."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from vipllava_jax.messages import brief

AXES = ('data', 'fsdp', 'tensor')
ROW_AXES = ('data', 'fsdp')  # the axes that divide the rows of a batch
MAX_DEVICES = 1 << 20  # per axis
FORM = 'expected axis=devices, separated by commas, as in tensor=4,data=2, or auto'


def parse_mesh(text: str) -> dict[str, int] | Literal['auto']:
    """'tensor=4,data=2' -> {'tensor': 4, 'data': 2}; 'auto' -> 'auto', for the caller to choose.

    Raises ValueError, in one line, for another form, an unknown or repeated axis, or a size that is not a
    whole number from 1.
    """
    if text.strip() == 'auto':
        return 'auto'
    axes: dict[str, int] = {}
    for part in text.split(','):
        name, equals, size = (word.strip() for word in part.partition('='))
        if not equals:
            raise ValueError(f'mesh is {brief(text)}, {FORM}')
        check_axis(name)
        if name in axes:
            raise ValueError(f'mesh: the axis {name} is given twice in {brief(text)}')
        is_number = size.isascii() and size.isdecimal() and len(size) < 10
        if not is_number or not 1 <= int(size) <= MAX_DEVICES:
            raise ValueError(
                f'mesh: {name} is {brief(size)}, expected a whole number of devices, 1 to {MAX_DEVICES:,}'
            )
        axes[name] = int(size)
    return axes


def mesh_text(axes: Mapping[str, int]) -> str:
    """The inverse of `parse_mesh`: {'tensor': 4, 'data': 2} -> 'tensor=4,data=2'."""
    return ','.join(f'{name}={size}' for name, size in axes.items())


def check_axis(name: Any) -> None:
    """Raises ValueError unless a mesh may have an axis of this name."""
    if name not in AXES:
        raise ValueError(f'mesh: there is no axis {brief(name)}; the axes are {", ".join(AXES)}')


def row_parts(axes: Mapping[str, int]) -> int:
    """The number of parts into which a mesh, given by the sizes of its axes, divides the rows of a batch."""
    return math.prod(axes.get(name, 1) for name in ROW_AXES)
