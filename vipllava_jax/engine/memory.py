"""How many rows the memory of the devices has room for, beside the weights and the stored prefixes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipllava_jax.device_kinds import memory_of
from vipllava_jax.device_memory import (
    abstract_mesh,
    activation_dtype,
    bytes_per_device,
    cache_bytes,
    working_bytes,
)
from vipllava_jax.engine.shapes import FEW_ROWS, LONG_ROWS, PREFILL_TOKENS, TOGETHER
from vipllava_jax.generation.model import Model
from vipllava_jax.mesh_text import row_parts
from vipllava_jax.messages import amount
from vipllava_jax.sharding import mesh_of

PREFIX_BYTES = 4 << 30
RESERVE = 0.06  # the part of the memory that stays free, for programs and for what lies between buffers
MOST_ROWS = 256
ROWS_ON_CPU = 8


def default_prefix_bytes(model: Model) -> int:
    """The bytes for stored prefixes: 4 GiB, or a tenth of the memory of small devices."""
    memory = memory_of(jax.local_devices()[:1])
    return PREFIX_BYTES if memory is None else min(PREFIX_BYTES, memory // 10)


def rows_for(
    model: Model, slots: int, long_rows: int | None, prefix_bytes: int | None, devices: Sequence[Any]
) -> int:
    """The rows of `slots` slots for which the devices have room; ValueError if there is not even one."""
    memory = memory_of(devices)
    if memory is None or devices[0].platform == 'cpu':
        return ROWS_ON_CPU
    params, cfg = model.params, model.cfg
    mesh = mesh_of(params) or abstract_mesh({'data': 1})
    slots = min(slots, cfg.text.context)
    long_rows = LONG_ROWS if long_rows is None else long_rows
    dtype = activation_dtype(params)
    fused = devices[0].platform == 'gpu' and jnp.dtype(dtype).itemsize == 2
    used = bytes_per_device(params, mesh)
    used += default_prefix_bytes(model) if prefix_bytes is None else prefix_bytes
    if slots < cfg.text.context and long_rows:
        used += cache_bytes(cfg, dtype, long_rows, cfg.text.context, mesh)
    used += cache_bytes(cfg, dtype, TOGETHER[0], slots, mesh)  # of a prefill, before its rows are copied
    prompts = max(1, PREFILL_TOKENS // slots)
    used += working_bytes(cfg, dtype, prompts, slots, mesh, fused_attention=fused)
    parts = row_parts(mesh.shape)
    rows = int((memory * (1 - RESERVE) - used) // cache_bytes(cfg, dtype, parts, slots, mesh)) * parts
    if rows < 1:
        raise ValueError(
            f'the {amount(memory)} of a device have no room for a row of {slots} slots beside {amount(used)} '
            'of weights, prefixes and prompts: give fewer slots or prefix_bytes, or quantize the weights'
        )
    rows -= sum(FEW_ROWS) if rows > 2 * sum(FEW_ROWS) else 0
    return min(rows, MOST_ROWS)
