"""Sets up jax's persistent cache of compiled programs.

The settings are environment variables that jax reads when it is imported, so that the user's own take
precedence.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

T = TypeVar('T')

OFF, FOLDER = 'off', 'JAX_COMPILATION_CACHE_DIR'
SETTINGS: dict[str, Any] = {
    # also small programs: on a GPU each takes a tenth of a second to compile, and a start needs dozens
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
    # XLA's own caches would add the folder's path to every key, and grow without bound
    'jax_persistent_cache_enable_xla_caches': 'none',
    'jax_compilation_cache_max_size': 1 << 30,  # bytes; the least recently used programs are deleted first
}
TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)': ([^'\"]*)")
UNTIMED = re.compile(r"No such file .*/([^/']+)-atime'")


def keep(wanted: str | None, environment: MutableMapping[str, str]) -> bool:
    """Makes jax, which must not be imported yet, cache programs in `wanted`, the user's folder, or ours.

    Returns whether the folder was set here, rather than by the user's environment.
    """
    if wanted == '':
        raise ValueError(f'--compilation-cache is empty: give a folder, or {OFF}')
    if wanted == OFF:
        environment.pop(FOLDER, None)
        return False
    if wanted is None and environment.get(FOLDER):
        return False
    folder = usual(environment) if wanted is None else Path(wanted).expanduser().absolute()
    if folder:
        environment[FOLDER] = str(folder)
        for name, value in SETTINGS.items():
            environment.setdefault(name.upper(), str(value))
    return folder is not None


def usual(environment: Mapping[str, str]) -> Path | None:
    """Our folder in the user's cache folder, if there is one."""
    given = Path(environment.get('XDG_CACHE_HOME', ''))
    try:
        home = Path.home() / ('Library/Caches' if sys.platform == 'darwin' else '.cache')
    except RuntimeError:  # a user without a home, as in some containers
        home = None
    caches = given if given.is_absolute() else home
    return caches and caches / 'vipllava' / 'programs'


def trouble(warning: str, folder: Path, ours: bool) -> str | None:
    """Rewrites a warning of jax about its cache for the user; None if its cause has been removed.

    An incomplete program, left by a full disk or a killed process, would never be replaced. It is deleted,
    but only if the folder is ours.
    """
    found = TROUBLE.match(warning)
    if not found:
        return warning
    what, program, why = found.groups()
    message = f'{folder}: compiled programs cannot be kept there: {why.strip(" :")}'
    if not ours:
        return message
    programs = [*folder.glob(f'{program}-*-cache')]
    # jax writes the time of last use after the program; some versions write no programs at all while there
    # is one without it
    untimed = UNTIMED.search(warning)
    blocking = [folder / f'{untimed[1]}-cache'] if untimed else []
    try:
        for path in blocking + (programs if what == 'reading' else [p for p in programs if _cut_off(p)]):
            path.unlink(missing_ok=True)
    except OSError:
        return message
    return None if blocking or (what == 'reading' and programs) else message


def _cut_off(program: Path) -> bool:
    return not program.with_name(program.name.removesuffix('-cache') + '-atime').exists()


def background(work: Callable[[], T]) -> Callable[[], T]:
    """Starts work on a daemon thread; returns a function that waits for its result."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result


def size(folder: Path) -> int:
    """The size in bytes of the programs in a folder; 0 if it does not exist."""
    try:
        return sum(file.stat().st_size for file in os.scandir(folder) if file.is_file())
    except OSError:
        return 0
