"""`vipllava batch merge`: puts the part files of a batch together."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vipllava_jax.cli.paths import FILE
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.batch_files.sources import Source


@click.command()
@click.argument('output', metavar='OUT.jsonl', type=FILE)
@click.option(
    '--ordered',
    metavar='INPUT',
    type=FILE,
    help='Write the lines in the order of the rows of this file or folder.  [default: part by part]',
)
def merge(output: str, ordered: str | None) -> None:
    """Write the lines of OUT.0-of-N.jsonl to OUT.(N-1)-of-N.jsonl to OUT.jsonl, if all parts are complete.

    The part files stay. The exit code is 1 if there are lines with errors.

    \b
    Examples:
      vipllava batch merge answers.jsonl
      vipllava batch merge answers.jsonl --ordered rows.jsonl
    """
    from vipllava_jax.batch_files.merging import merge as merge_parts
    from vipllava_jax.batch_files.picture_folder import FolderRows
    from vipllava_jax.batch_files.sources import FileRows

    source: Source | None = None
    if ordered is not None:
        path = Path(ordered)
        source = FolderRows(path) if path.is_dir() else FileRows(path)
    counts = merge_parts(Path(output), source).complete
    assert counts
    click.echo(f'vipllava: {printable(said_of(counts, Path(output)))}', err=True)
    sys.exit(int(bool(counts['errors'])))


def said_of(counts: dict[str, int], output: Path) -> str:
    """'39 answers and 1 error are in out.jsonl'"""
    parts = [
        f'{counts[name]:,} {name.removesuffix("s") if counts[name] == 1 else name}'
        for name in ('answers', 'errors')
        if counts[name] or name == 'answers'
    ]
    verb = 'is' if parts == ['1 answer'] else 'are'
    return f'{" and ".join(parts)} {verb} in {output}'
