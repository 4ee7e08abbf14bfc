"""How many rows the memory of the devices has room for, beside the weights and the stored prefixes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipllava_jax.config import Config
from vipllava_jax.device_kinds import memory_of
from vipllava_jax.device_memory import (
    abstract_mesh,
    activation_dtype,
    bytes_per_device,
    cache_bytes,
    working_bytes,
)
from vipllava_jax.engine.shapes import PREFILL_TOKENS, Shapes, lanes_for_few, make_shapes
from vipllava_jax.generation.model import Model
from vipllava_jax.mesh_text import row_parts
from vipllava_jax.messages import amount, brief
from vipllava_jax.sharding import mesh_of

PREFIX_BYTES = 4 << 30
RESERVE = 0.06  # the part of the memory that stays free, for programs and for what lies between buffers
SLOTS, MIN_SLOTS = 1024, 16  # of most rows
MOST_ROWS = 256
LONG_ROWS = 2  # of the full context
MIDDLE = 0.2  # the part of the memory for rows that have twice the slots of most rows
ROWS_ON_CPU = 8


def default_prefix_bytes() -> int:
    """The bytes for stored prefixes: 4 GiB, or a tenth of the memory of small devices."""
    memory = memory_of(jax.local_devices()[:1])
    return PREFIX_BYTES if memory is None else min(PREFIX_BYTES, memory // 10)


def shapes_for(
    model: Model,
    rows: int | None = None,
    slots: int = SLOTS,
    long_rows: int | Mapping[int, int] | None = None,
    prefix_bytes: int | None = None,
) -> Shapes:
    """The shapes of an engine; ValueError for a number that is out of range."""
    prefix_bytes = default_prefix_bytes() if prefix_bytes is None else prefix_bytes
    wide = long_rows if isinstance(long_rows, Mapping) else {}
    numbers: dict[str, tuple[Any, int]] = {
        'rows': (rows, 1),
        'slots': (slots, MIN_SLOTS),
        'prefix_bytes': (prefix_bytes, 0),
    }
    if not wide:
        numbers['long_rows'] = (long_rows, 0)
    for size, count in wide.items():
        numbers[f'long_rows[{size}]'] = (count, 0)
    for name, (value, least) in numbers.items():
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f'{name} is {brief(value)}: give a whole number from {least} on')
    mesh = mesh_of(model.params)
    if mesh and len({device.process_index for device in mesh.devices.flat}) > 1:
        raise ValueError('the engine runs on devices of one process: start one engine in each process')
    parts = row_parts(mesh.shape) if mesh else 1
    devices = [*mesh.devices.flat] if mesh else jax.local_devices()[:1]
    is_small = devices[0].platform == 'cpu'
    if rows is None:
        rows, wider = rows_for(model, slots, long_rows, prefix_bytes, devices)
    else:
        wider = default_wide(model.cfg, min(slots, model.cfg.text.context), long_rows, is_small)
    return make_shapes(model.cfg, rows, slots, wider, parts, is_small, divides_caches(devices))


def rows_for(
    model: Model,
    slots: int,
    long_rows: int | Mapping[int, int] | None,
    prefix_bytes: int,
    devices: Sequence[Any],
) -> tuple[int, dict[int, int]]:
    """The rows of `slots` slots for which the devices have room, and by their slots the wider rows.

    Raises ValueError if there is not even one row.
    """
    cfg = model.cfg
    slots = min(slots, cfg.text.context)
    memory = memory_of(devices)
    is_small = memory is None or devices[0].platform == 'cpu'
    wide = default_wide(cfg, slots, long_rows, is_small)
    if memory is None or is_small:
        return ROWS_ON_CPU, wide
    mesh = mesh_of(model.params) or abstract_mesh({'data': 1})
    dtype, parts = activation_dtype(model.params), row_parts(mesh.shape)

    def of_rows(rows: int, slots: int) -> int:
        return cache_bytes(cfg, dtype, rows, slots, mesh)

    fused = devices[0].platform == 'gpu' and jnp.dtype(dtype).itemsize == 2
    prompts = max(1, PREFILL_TOKENS // slots)
    used = bytes_per_device(model.params, mesh)
    used += prefix_bytes
    used += of_rows(parts, PREFILL_TOKENS)  # of a prefill, before its rows are copied
    used += working_bytes(cfg, dtype, prompts, slots, mesh, fused_attention=fused)
    used += sum(of_rows(count, size) for size, count in wide.items())
    left = memory * (1 - RESERVE) - used
    if long_rows is None and 2 * slots < cfg.text.context:
        middle = min(int(left * MIDDLE // of_rows(parts, 2 * slots)) * parts, MOST_ROWS // 4)
        wide = {2 * slots: middle, **wide}
        left -= of_rows(middle, 2 * slots) if middle else 0
    if parts == 1:
        few, level = lanes_for_few(wide, slots, MOST_ROWS, False, divides_caches(devices))
        left -= sum(of_rows(count, slots) for count in (few[:-1] if level else few))
    rows = int(left // of_rows(parts, slots)) * parts
    if rows < 1:
        raise ValueError(
            f'the {amount(memory)} of a device have no room for a row of {slots} slots beside {amount(used)} '
            'of weights, prefixes and prompts: give fewer slots or prefix_bytes, or quantize the weights'
        )
    return min(rows, MOST_ROWS), wide


def divides_caches(devices: Sequence[Any]) -> bool:
    """Whether lanes use the caches of others, with other numbers of rows: a TPU would copy them."""
    return bool(devices[0].platform == 'gpu')


def default_wide(
    cfg: Config, slots: int, long_rows: int | Mapping[int, int] | None, is_small: bool
) -> dict[int, int]:
    """The numbers of rows wider than `slots`, by their slots."""
    if isinstance(long_rows, Mapping):
        return dict(long_rows)
    if slots >= cfg.text.context:
        return {}
    count = (1 if is_small else LONG_ROWS) if long_rows is None else long_rows
    return {cfg.text.context: count}
