"""Types of options and arguments that are paths: the shell completes them, and the commands check them."""

from pathlib import Path
from typing import Any, Literal

import click
from click.shell_completion import CompletionItem

STDIN = '-'


class PathText(click.ParamType):
    """A path as a string, which may also be a name on the Hugging Face Hub or '-'.

    click's own type would refuse a path with messages that do not say what to do.
    """

    def __init__(self, name: Literal['file', 'dir']):
        self.name = name  # the type by which click's completion scripts list files or folders

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type=self.name)]


class PathObject(PathText):
    """A path as a `Path`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(value)


FILE, FOLDER = PathText('file'), PathText('dir')
FILE_PATH, FOLDER_PATH = PathObject('file'), PathObject('dir')
