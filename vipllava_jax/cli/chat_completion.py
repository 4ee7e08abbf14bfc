"""What Tab completes in a chat: commands, files, shapes of marks and names of settings."""

import glob
import os
from collections.abc import Iterator

from vipllava_jax.cli.chat_commands import COMMANDS
from vipllava_jax.cli.chat_settings import setting_names

OF_FILES = ('image', 'save', 'load')


def completions(line: str, begin: int) -> list[str]:
    """What the last word of a line, which begins at `begin`, may be; nothing in a question."""
    if not line.startswith('/'):
        return []
    name, space, argument = line[1:].partition(' ')
    if not space:
        return [f'/{command} ' for command in COMMANDS if command.startswith(name)]
    skipped = begin - len(f'/{name} ')  # a path may have spaces
    if name in OF_FILES:
        return [path[skipped:] for path in paths(argument)]
    if skipped:
        return []
    if name == 'set':
        return [f'{setting} ' for setting in setting_names() if setting.startswith(argument)]
    return [mark for mark in shapes(argument) if mark.startswith(argument)] if name == 'mark' else []


def paths(beginning: str) -> Iterator[str]:
    """The paths that begin in this way, written in the same way; those of folders end in a slash."""
    home = os.path.expanduser(beginning)
    for path in sorted(glob.glob(f'{glob.escape(home)}*')):
        yield beginning + path[len(home) :] + ('/' if os.path.isdir(path) else '')


def shapes(beginning: str) -> Iterator[str]:
    """The beginnings of marks: '2/rectangle:'."""
    from vipllava_jax.inputs.marks import PREPOSITIONS

    number, slash, _ = beginning.rpartition('/')
    for shape in PREPOSITIONS:
        yield f'{number}{slash}{shape.replace(" ", "-")}:'
