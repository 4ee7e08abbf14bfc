"""What is kept of chats in the user's folder of states: the lines that were typed, and the last chats."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vipllava_jax.messages import printable
from vipllava_jax.threads import background

if TYPE_CHECKING:
    from vipllava_jax.answering.chat import Chat

KEPT = 10  # chats


def state_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder of what is kept, which only the user can read; None if it cannot be created."""
    configured = Path(environment.get('XDG_STATE_HOME', ''))
    try:
        home = Path.home() / ('Library/Application Support' if sys.platform == 'darwin' else '.local/state')
        folder = (configured if configured.is_absolute() else home) / 'vipllava'
        (folder / 'chats').mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except (OSError, RuntimeError):  # a user without a home folder, as in some containers
        return None
    return folder


class KeptChat:
    """A file in which a chat is kept after each answer, so that nothing is lost if the process is killed."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` is that of `state_folder`; None keeps nothing."""
        self.folder = folder and folder / 'chats'
        self.path: Path | None = None
        self._wait: Callable[[], None] = lambda: None

    def keep(self, chat: 'Chat') -> None:
        """Writes the chat in the background, after what is being written."""
        self.finish()
        if self.folder is None:
            return
        if self.path is None:
            self.path = self._new_path()
        self._wait = background(partial(chat.save, self.path))

    def finish(self) -> Path | None:
        """Waits until the chat is written; returns its path, or None if it is not kept."""
        from vipllava_jax.cli import user_error

        wait, self._wait = self._wait, lambda: None
        try:
            wait()
        except (OSError, ValueError) as error:
            reason = printable(user_error(error) or '')
            click.echo(f'vipllava: the chat is no longer kept: {reason}: /save FILE saves it', err=True)
            self.folder = self.path = None
        return self.path

    def begin_another(self) -> None:
        """From now on, another chat is kept, in a file of its own."""
        self.finish()
        self.path = None

    def _new_path(self) -> Path:
        """A path for a new chat; of the oldest ones, those beyond KEPT are removed."""
        assert self.folder is not None
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.glob('????-??-??-??????-*.json'))[: 1 - KEPT]:
                path.unlink(missing_ok=True)
        return self.folder / f'{time.strftime("%Y-%m-%d-%H%M%S")}-{os.getpid()}.json'
