"""Sets up jax's persistent cache of compiled programs.

The settings are environment variables that jax reads when it is imported; those that the user has set take
precedence.
"""

import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar('T')

OFF, FOLDER = 'off', 'JAX_COMPILATION_CACHE_DIR'
SETTINGS: dict[str, Any] = {
    # Small programs too: each takes 0.1 s to compile on a GPU, and starting takes dozens of them.
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
    # XLA has other caches, which would add the folder's path to every key and grow without bound.
    'jax_persistent_cache_enable_xla_caches': 'none',
    'jax_compilation_cache_max_size': 1 << 30,  # bytes; the least recently used programs are deleted first
}
TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)': ([^'\"]*)")
UNTIMED = re.compile(r"No such file .*/([^/']+)-atime'")


def use_cache(choice: str | None, environment: MutableMapping[str, str]) -> bool:
    """Sets environment variables with which jax, which must not be imported yet, caches compiled programs.

    The folder is `choice`, where 'off' disables the cache; if `choice` is None, the one that the environment
    names, or else that of `usual`. Returns whether the folder was set here rather than by the environment.
    Raises ValueError if `choice` is empty.
    """
    if choice == '':
        raise ValueError(f'--compilation-cache is empty: give a folder, or {OFF}')
    if choice == OFF:
        environment.pop(FOLDER, None)
        return False
    if choice is None and environment.get(FOLDER):
        return False
    folder = default_folder(environment) if choice is None else Path(choice).expanduser().absolute()
    if folder:
        environment[FOLDER] = str(folder)
        for name, value in SETTINGS.items():
            environment.setdefault(name.upper(), str(value))
    return folder is not None


def default_folder(environment: Mapping[str, str]) -> Path | None:
    """The default cache folder, within the user's folder of caches; None if that is unknown."""
    configured = Path(environment.get('XDG_CACHE_HOME', ''))
    try:
        home = Path.home() / ('Library/Caches' if sys.platform == 'darwin' else '.cache')
    except RuntimeError:  # a user without a home folder, as in some containers
        home = None
    caches = configured if configured.is_absolute() else home
    return caches and caches / 'vipllava' / 'programs'


def plain_warning(warning: str, folder: Path, is_ours: bool) -> str | None:
    """A warning of jax about its cache -> the same in plain words, or None if the bad entry was deleted.

    jax would never replace an incomplete program, which a full disk or a killed process left. It is deleted,
    but only if `is_ours`: if this program, rather than the user, chose the folder. Other warnings are
    returned unchanged.
    """
    found = TROUBLE.match(warning)
    if not found:
        return warning
    action, program, reason = found.groups()
    message = f'{folder}: compiled programs cannot be kept there: {reason.strip(" :")}'
    if not is_ours:
        return message
    programs = [*folder.glob(f'{program}-*-cache')]
    # jax writes a file with the time of last use after the program. Some versions write no programs at all
    # while a program lacks this file.
    untimed = UNTIMED.search(warning)
    blocking = [folder / f'{untimed[1]}-cache'] if untimed else []
    try:
        for path in blocking + (programs if action == 'reading' else [p for p in programs if _cut_off(p)]):
            path.unlink(missing_ok=True)
    except OSError:
        return message
    return None if blocking or (action == 'reading' and programs) else message


def _cut_off(program: Path) -> bool:
    return not program.with_name(program.name.removesuffix('-cache') + '-atime').exists()


def cache_size(folder: Path) -> int:
    """The size in bytes of the programs in a folder; 0 if it does not exist."""
    try:
        return sum(file.stat().st_size for file in os.scandir(folder) if file.is_file())
    except OSError:
        return 0
