"""Where compiled programs are kept from one start to the next: jax's cache, in a folder of ours.

All is said in the variables that jax reads when it is imported, so that what the user has set there wins.
"""

import contextlib
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

OFF, FOLDER = 'off', 'JAX_COMPILATION_CACHE_DIR'
SETTINGS: dict[str, Any] = {
    # small programs too: a GPU takes a tenth of a second for each, and a start needs dozens
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
    # XLA's own would put the folder's path into every key, grow without bound and need room on the disk
    'jax_persistent_cache_enable_xla_caches': 'none',
    'jax_compilation_cache_max_size': 1 << 30,  # bytes; what was used least recently goes first
}
TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)': ([^'\"]*)")


def keep(wanted: str | None, environment: MutableMapping[str, str]) -> None:
    """Has jax, not yet imported, keep programs in the folder that is wanted, the user's own, or ours."""
    if wanted == OFF:
        environment.pop(FOLDER, None)
        return
    if wanted is None and FOLDER in environment:
        return
    folder = usual(environment) if wanted is None else Path(wanted).expanduser().absolute()
    if folder:
        environment[FOLDER] = str(folder)
        for name, value in SETTINGS.items():
            environment.setdefault(name.upper(), str(value))


def usual(environment: Mapping[str, str]) -> Path | None:
    """Our place among the user's caches, if there is one."""
    given = Path(environment.get('XDG_CACHE_HOME', ''))
    try:
        home = Path.home() / ('Library/Caches' if sys.platform == 'darwin' else '.cache')
    except RuntimeError:  # a user without a home, as in some containers
        home = None
    caches = given if given.is_absolute() else home
    return caches and caches / 'vipllava' / 'programs'


def trouble(warning: str, folder: Path) -> str | None:
    """A warning of jax's about its cache as a user should read it, or None if what caused it is mended.

    A program that was cut off, by a full disk or the end of the process, would be in the way for ever.
    """
    found = TROUBLE.match(warning)
    if not found:
        return warning
    what, program, why = found.groups()
    damaged = [*folder.glob(f'{program}-*-cache')] if what == 'reading' else _unfinished(folder)
    with contextlib.suppress(OSError):
        for path in damaged:
            path.unlink()
        if damaged and what == 'reading':
            return None
    return f'{folder}: compiled programs cannot be kept there: {why.strip(" :")}'


def _unfinished(folder: Path) -> list[Path]:
    """Programs that are not whole: the time of their last use, written after them, is not there."""
    times = {path.name.removesuffix('-atime') for path in folder.glob('*-atime')}
    return [path for path in folder.glob('*-cache') if path.name.removesuffix('-cache') not in times]


def size(folder: Path) -> int:
    """The bytes of the programs in a folder, 0 if there is none."""
    try:
        return sum(file.stat().st_size for file in os.scandir(folder) if file.is_file())
    except OSError:
        return 0
