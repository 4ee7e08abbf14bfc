"""Checks of the installed software: versions that fit each other, the driver, cuDNN, NCCL, libtpu."""

import ctypes.util
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from vipllava_jax.doctor.check import Check, failed, ok, output_of, skipped
from vipllava_jax.version import __version__

PLUGINS = ('jax-cuda13-plugin', 'jax-cuda12-plugin')
INSTALL_CUDA = "pip install 'vipllava-jax[cuda13]' (or cuda12 for a driver older than 580)"
LIBRARIES = {'cuDNN': ('cudnn', 'the fast attention of GPUs'), 'NCCL': ('nccl', 'several GPUs')}
QUERY = ('nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader')
SECONDS = 10.0  # for nvidia-smi, which may wait for a driver


def check_versions() -> Check:
    """The versions of the packages; jax, jaxlib and the CUDA plugin must be of one release."""
    found = {name: version(name) for name in ('jax', 'jaxlib', *PLUGINS, 'libtpu', 'flax')}
    present = {name: number for name, number in found.items() if number}
    text = ', '.join(f'{name} {number}' for name, number in present.items())
    text = f'vipllava-jax {__version__}, {text}, Python {platform.python_version()}'
    if 'jaxlib' not in present:
        return failed('versions', text, 'jax is not installed completely: pip install --upgrade jax')
    for plugin in PLUGINS:
        if plugin in present and _release(present[plugin]) != _release(present['jaxlib']):
            advice = (
                f"{plugin} and jaxlib must have the same version: pip install --upgrade 'jax[{plugin[4:10]}]'"
            )
            return failed('versions', text, advice)
    return ok('versions', text, **present)


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(number: str) -> str:
    """'0.10.2.1' -> '0.10.2': the fourth part is that of a package alone."""
    return '.'.join(number.split('.')[:3])


def check_accelerators() -> Iterator[Check]:
    """The GPUs and TPUs that the system has, and whether jax can use them: drivers and libraries."""
    plugin = next((name for name in PLUGINS if version(name)), None)
    listed = output_of(QUERY, SECONDS)
    gpus = [line.strip() for line in (listed or '').splitlines() if line.strip()]
    if gpus:
        yield ok('GPU driver', gpus[0].rpartition(',')[2].strip())
        if plugin is None:
            yield failed('GPU plugin', 'there is a GPU, but jax has no CUDA plugin', INSTALL_CUDA)
    elif plugin:
        advice = 'install the NVIDIA driver; in a container, start it with --gpus all, or as its runtime asks'
        yield failed('GPU driver', f'{plugin} is installed, but nvidia-smi finds no GPU', advice)
    if plugin:
        yield from (check_library(name) for name in LIBRARIES)
    if _has_tpu() and not version('libtpu'):
        advice = "pip install 'vipllava-jax[tpu]'"
        yield failed('TPU library', 'there is a TPU, but libtpu is not installed', advice)
    if not gpus and not plugin and not _has_tpu():
        yield skipped('accelerator', 'neither a GPU nor a TPU was found: the model runs on the CPU')


def check_library(name: str) -> Check:
    """The version of a library of NVIDIA, from a package or the system."""
    word, purpose = LIBRARIES[name]
    for package in (f'nvidia-{word}-cu13', f'nvidia-{word}-cu12'):
        if number := version(package):
            return ok(name, f'{number} ({package})', version=number)
    if found := ctypes.util.find_library(word):
        return ok(name, found)
    return failed(name, f'not found, but needed for {purpose}', INSTALL_CUDA)


def _has_tpu() -> bool:
    return Path('/dev/accel0').exists() or Path('/dev/vfio/0').exists()
