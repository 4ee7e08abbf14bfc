"""The memory of devices: as they report it, or by the name of the kind of device."""

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.messages import brief

UNITS = {'B': 1, 'MB': 10**6, 'GB': 10**9, 'MIB': 2**20, 'GIB': 2**30}
TPUS = {  # names in lower case -> GiB that XLA can use per device; a device of v4, v5p and later is a chip
    ('v2', 'tpu v2'): 7.48,
    ('v3', 'tpu v3'): 15.48,
    ('v4', 'tpu v4'): 30.75,
    ('v5e', 'tpu v5 lite', 'tpu v5e', 'tpu v5litepod'): 15.75,
    ('v5p', 'tpu v5', 'tpu v5p'): 95.74,
    ('v6e', 'tpu v6 lite', 'tpu v6e'): 31.25,
}
GPUS = {  # names in lower case -> GiB of the GPU, of which jax uses a fraction
    ('h200',): 139.8,
    ('h100', 'h800'): 79.1,
    ('gh200',): 94.5,
    ('b200',): 178.3,
    ('a100-40gb', 'a100-sxm4-40gb', 'a100-pcie-40gb'): 39.4,
    ('a100', 'a800'): 79.2,
    ('l4',): 22.0,
    ('l40', 'l40s', 'rtx 6000'): 44.4,
    ('a10', 'a10g'): 22.0,
    ('t4',): 14.6,
    ('v100',): 15.8,
    ('4090', '3090'): 23.5,
}
CONTAINER_LIMIT = Path('/sys/fs/cgroup/memory.max')
FRACTION = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
JAX_DEFAULT = 0.75  # of the fraction
RESERVED = 0.95  # the fraction for commands of this package that use a mesh, or train


@dataclass(frozen=True)
class Fleet:
    """A number of equal devices, for which a mesh is chosen or checked."""

    count: int
    memory: int | None  # bytes that each can use; None if that is not known
    per_host: int  # devices per process
    platform: str  # 'tpu', 'gpu' or 'cpu'


class DeviceMemory(NamedTuple):
    """The bytes that XLA can use on a device, and the platform: 'tpu', 'gpu' or 'cpu'."""

    bytes: int
    platform: str


def memory_of_kind(kind: str, fraction: float = JAX_DEFAULT) -> DeviceMemory | None:
    """The memory of a kind of device, such as 'v5e' or 'NVIDIA H100 80GB HBM3'; None if it is not known.

    Of a GPU, jax uses only `fraction`, or what XLA_PYTHON_CLIENT_MEM_FRACTION says.
    """
    words = ' '.join(kind.lower().split())
    for names, size in TPUS.items():
        if words in names:
            return DeviceMemory(int(size * 2**30), 'tpu')
    for names, size in sorted(GPUS.items(), key=lambda item: -max(map(len, item[0]))):
        if any(re.search(rf'(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])', words) for name in names):
            return DeviceMemory(int(size * _fraction(fraction) * 2**30), 'gpu')
    return None


def _fraction(default: float) -> float:
    """The fraction in XLA_PYTHON_CLIENT_MEM_FRACTION, or the default."""
    try:
        fraction = float(os.environ.get(FRACTION) or default)
    except ValueError:
        return default
    return fraction if 0 < fraction <= 1 else default


def memory_of(devices: Sequence[Any]) -> int | None:
    """The bytes that every one of some devices can use; None if that is not known.

    The memory of devices of several processes is taken from their kind, so that all processes get the same.
    """
    sizes = [_memory_of(device, len({d.process_index for d in devices}) > 1) for device in devices]
    known = [size for size in sizes if size is not None]
    return min(known) if known and len(known) == len(sizes) else None


def fleet_of(devices: Sequence[Any] | None = None) -> Fleet:
    """The devices of this run, by default all."""
    import jax

    found = list(jax.devices() if devices is None else devices)
    processes = len({device.process_index for device in found})
    return Fleet(len(found), memory_of(found), max(1, len(found) // processes), found[0].platform)


def _memory_of(device: Any, several_processes: bool) -> int | None:
    by_kind = memory_of_kind(device.device_kind)
    if by_kind and several_processes:
        return by_kind.bytes
    if device.platform == 'cpu':
        return _memory_of_host() // max(1, len(device.client.local_devices()))
    try:
        reported = (device.memory_stats() or {}).get('bytes_limit')
    except Exception:  # a device of another process, or a platform that reports none
        reported = None
    return reported or (by_kind and by_kind.bytes)


def _memory_of_host() -> int:
    """The bytes of this computer's memory, or of those that its container may use."""
    size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    with contextlib.suppress(OSError, ValueError):  # no such file, or 'max'
        size = min(size, int(CONTAINER_LIMIT.read_text()))
    return size


def parse_memory(text: str) -> DeviceMemory:
    """'16GiB', or the name of a kind of device, such as 'v5e' -> the memory and platform.

    A size alone counts as a TPU's, where attention takes more memory than on a GPU. Raises ValueError for
    another text.
    """
    match = re.fullmatch(r'([0-9]{1,6}(?:\.[0-9]{1,6})?) ?([KMGT]?i?B)', text.strip(), re.IGNORECASE)
    if match and match[2].upper() in UNITS:
        size = int(float(match[1]) * UNITS[match[2].upper()])
        if size:
            return DeviceMemory(size, 'tpu')
    elif (by_kind := memory_of_kind(text[:100], RESERVED)) is not None:
        return by_kind
    kinds = ', '.join(names[0] for names in (*TPUS, *GPUS))
    raise ValueError(
        f'{brief(text, 40)}: expected a size such as 16GiB or 24GB, or a kind of device: {kinds}'
    )


def gib(size: float) -> str:
    """A number of bytes in GiB, or in MiB if it is small."""
    if size >= 2**30 * 99.5:
        return f'{size / 2**30:,.0f} GiB'
    if size >= 2**30 / 10:
        return f'{size / 2**30:.2f} GiB'
    return f'{math.ceil(size / 2**20 * 10) / 10:.1f} MiB'
