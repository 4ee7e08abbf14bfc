"""Sets up jax's persistent cache of compiled programs.

The settings are environment variables that jax reads when it is imported; those that the user has set take
precedence.
"""

import contextlib
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
    # With a limit, jax locks the folder and reads all of it whenever it stores a program.
    'jax_compilation_cache_max_size': -1,
}
MAX_BYTES = 1 << 30  # of the folder when a command starts
PROGRAM = re.compile(r'(.+-[0-9a-f]{64})-cache')
TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)': ([^'\"]*)")
UNTIMED = re.compile(r"No such file .*/([^/']+)-atime'")


def use_cache(choice: str | None, environment: MutableMapping[str, str]) -> bool:
    """Sets environment variables with which jax, which must not be imported yet, caches compiled programs.

    The folder is `choice`, where 'off' disables the cache; if `choice` is None, the one that the environment
    names, or else that of `default_folder`. If the folder is set here rather than by the environment, which
    is returned, it is reduced to MAX_BYTES, unless the environment has another limit. Raises ValueError if
    `choice` is empty.
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
        if 'JAX_COMPILATION_CACHE_MAX_SIZE' not in environment:
            delete_old_programs(folder, MAX_BYTES)
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


def delete_old_programs(folder: Path, most: int) -> None:
    """Deletes the least recently used programs in a folder, until the others have at most `most` bytes.

    It is done before jax starts, because the processes of a pod must find the same programs. Other files
    stay; what other processes delete at the same time, or what cannot be deleted, is passed over.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as files:
        for file in files:
            if PROGRAM.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    stat = file.stat()
                    # The time of access may be missing, or is up to a day old.
                    found.append((max(stat.st_atime_ns, stat.st_mtime_ns), stat.st_size, Path(file.path)))
    found.sort(reverse=True)
    for _, size, path in found:
        most -= size
        if most < 0:
            with contextlib.suppress(OSError):
                path.unlink()
                _time_of_use(path).unlink(missing_ok=True)


def _time_of_use(program: Path) -> Path:
    """The file with the time of the last use of a program, which jax writes if it limits the folder."""
    return program.with_name(program.name.removesuffix('-cache') + '-atime')


def plain_warning(warning: str, folder: Path, is_ours: bool) -> str | None:
    """A warning of jax about its cache -> the same in plain words, or None if the bad entry was deleted.

    jax would never replace an incomplete program, which a full disk or a killed process left. It is deleted
    when it cannot be read, but only if `is_ours`: if this program, rather than the user, chose the folder.
    Other warnings are returned unchanged.
    """
    found = TROUBLE.match(warning)
    if not found:
        return warning
    action, program, reason = found.groups()
    message = f'{folder}: compiled programs cannot be kept there: {reason.strip(" :")}'
    if not is_ours:
        return message
    # If the user sets a limit, jax stores nothing while a program lacks the file with the time of its use.
    untimed = UNTIMED.search(warning)
    bad = [folder / f'{untimed[1]}-cache'] if untimed else []
    if action == 'reading':
        bad += folder.glob(f'{program}-*-cache')
    try:
        for path in bad:
            path.unlink(missing_ok=True)
    except OSError:
        return message
    return None if bad else message


def cache_size(folder: Path) -> int:
    """The size in bytes of the programs in a folder; 0 if it does not exist."""
    try:
        return sum(file.stat().st_size for file in os.scandir(folder) if file.is_file())
    except OSError:
        return 0
