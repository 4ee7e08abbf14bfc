"""Reads the lines of a chat: from a terminal, with history and completion, or from a pipe."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vipllava_jax import signals
from vipllava_jax.cli.stdin import read_line

PROMPT, CONTINUED = '> ', '… '
LEAVING = 'Ctrl-D or /quit leaves the chat; /help lists the commands'
MAX_HISTORY = 1000  # lines that are kept
MAX_HISTORY_BYTES = 4 << 20  # of a file of them that is read
READLINE = ('tab: complete', 'set enable-bracketed-paste on', 'set show-all-if-ambiguous on')
EDITLINE = ('bind ^I rl_complete',)
Completer = Callable[[str, int], list[str]]  # (line, where its last word begins) -> what that word may be


class PipedLines:
    """Lines on stdin that no person types: no prompts, and an error ends the chat."""

    is_terminal = False

    def read(self, start: str = '') -> str | None:
        """The next line that is not blank, with those that it continues on; None at the end.

        A line that ends in a backslash continues on the next. `start` is for terminals.
        """
        lines: list[str] = []
        while (line := read_line('a line on stdin')) is not None:
            lines.append(line.removesuffix('\\'))
            if line.endswith('\\'):
                continue
            if text := joined(lines):
                return text
            lines = []
        return joined(lines) or None


class TerminalLines:
    """Lines that a person types, with those of earlier chats as history."""

    is_terminal = True

    def __init__(self, completer: Completer, history: Path | None) -> None:
        self.history = history
        self.start = ''
        self.saved = 0  # lines of the history that its file has
        self.readline: Any = None
        with contextlib.suppress(ImportError):  # some builds of Python have none
            import readline

            self.readline = readline
            set_up(readline, completer)
            readline.set_startup_hook(self._insert_start)
            load_history(readline, history)
            self.saved = readline.get_current_history_length()

    def read(self, start: str = '') -> str | None:
        """The next input that is not blank, in which `start` is typed already; None at the end, Ctrl-D.

        A line that ends in a backslash continues on the next, and pasted lines stay together. Ctrl-C drops
        what is typed or, if that is nothing, says how to leave.
        """
        lines: list[str] = []
        self.start = start
        while True:
            try:
                with signals.raising_interrupts():
                    line = self._input(CONTINUED if lines else PROMPT)
            except KeyboardInterrupt:
                is_empty = not lines and not (self.readline and self.readline.get_line_buffer())
                click.echo(f'\n{LEAVING}' if is_empty else '', err=True)
                lines = []
                continue
            except EOFError:
                return None
            except UnicodeDecodeError:
                click.echo('vipllava: the line is not UTF-8: type it again', err=True)
                continue
            lines.append(line.removesuffix('\\'))
            if line.endswith('\\'):
                continue
            if text := joined(lines):
                self._remember()
                return text
            lines = []

    def _input(self, prompt: str) -> str:
        """A line; without readline or if stdout is not the terminal, the prompt is on stderr."""
        if self.readline and sys.stdout.isatty():
            return input(prompt)
        click.echo(prompt, nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            click.echo(err=True)
            raise EOFError
        return line.rstrip('\r\n')

    def _insert_start(self) -> None:
        if self.start and self.readline:
            self.readline.insert_text(self.start)
            self.start = ''

    def _remember(self) -> None:
        """Appends the new lines to the file of the history, in case the process is killed."""
        if not self.readline or not self.history:
            return
        length = self.readline.get_current_history_length()
        with contextlib.suppress(OSError):
            self.readline.append_history_file(length - self.saved, self.history)
        self.saved = length


def joined(lines: list[str]) -> str:
    """The lines as one text, '' if they are blank; a space at its start says that it is not a command."""
    text = '\n'.join(lines)
    return text.rstrip() if text.strip() else ''


def set_up(readline: Any, completer: Completer) -> None:
    """Lets Tab complete the last word of a line, and pasted lines stay together."""
    found: list[str] = []

    def complete(word: str, number: int) -> str | None:
        if number == 0:
            found[:] = completer(readline.get_line_buffer()[: readline.get_endidx()], readline.get_begidx())
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(' ')
    is_editline = 'libedit' in (readline.__doc__ or '')
    for binding in EDITLINE if is_editline else READLINE:
        readline.parse_and_bind(binding)


def load_history(readline: Any, path: Path | None) -> None:
    """Reads the lines of earlier chats from a file that is for the user alone, and created if needed."""
    readline.set_history_length(MAX_HISTORY)
    if path is None:
        return
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        if path.is_file() and path.stat().st_size <= MAX_HISTORY_BYTES:
            path.chmod(0o600)
            readline.read_history_file(path)
