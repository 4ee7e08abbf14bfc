"""The `vipllava` command; the module of each subcommand is imported when it is called."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from vipllava_jax import compilation, signals
from vipllava_jax.cli.paths import FOLDER
from vipllava_jax.messages import brief, printable
from vipllava_jax.threads import in_background
from vipllava_jax.version import __version__

COMMANDS = {
    'demo': 'Try a small bundled model, without a download.',
    'ask': 'Ask a question about a picture, with marks drawn on it.',
    'chat': 'Talk about pictures, with marks drawn on them.',
    'regions': 'Ask a question about each of many regions of a picture.',
    'batch': 'Answer the questions of a file, many at a time.',
    'serve': "Answer requests over HTTP, as OpenAI's API does.",
    'draw': 'Draw marks on a picture.',
    'convert': 'Convert a checkpoint from PyTorch to Flax, or back.',
    'train': 'Fine-tune a model, completely or with LoRA.',
    'eval': 'Measure the accuracy of a model on questions with known answers.',
    'bench': 'Measure the speed of each part of the model on its devices.',
    'doctor': 'Check this computer, and say what to do where it fails.',
    'info': 'Show versions, devices, a checkpoint, and what fits on a mesh.',
}
NO_MEMORY = (
    '{} does not have enough memory: try --quantize int8 or int4, --dtype bfloat16, fewer images, a smaller '
    'batch or a shorter answer'
)


class LazyGroup(click.Group):
    """The subcommands, imported when needed, so that `vipllava --help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            if ctx.resilient_parsing:  # the shell is completing a command line
                return None
            raise click.UsageError(f'unknown command {brief(name)}; the commands are {", ".join(COMMANDS)}')
        return refusing_empty(getattr(import_module(f'vipllava_jax.cli.{name}'), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section('Commands'):
            formatter.write_dl([*COMMANDS.items()])


def refusing_empty(command: click.Command) -> click.Command:
    """The command, changed so that its options refuse an empty value."""
    for option in command.params:
        if isinstance(option, click.Option) and option.callback is None:
            option.callback = not_empty
    return command


def not_empty(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
    """The value of an option; refuses an empty one, as from a shell variable that is not set."""
    if any(v in ('', Path()) for v in (value if isinstance(value, tuple) else (value,))):
        raise click.BadParameter('empty: give a value, or leave the option out', ctx, option)
    return value


@click.group(
    cls=LazyGroup, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 100}
)
@click.version_option(__version__)
@click.option(
    '--compilation-cache',
    metavar='FOLDER|off',
    type=FOLDER,
    envvar='VIPLLAVA_COMPILATION_CACHE',
    show_envvar=True,
    help='The folder in which compiled programs are stored, so that they are compiled only once; off for '
    'none.  [default: JAX_COMPILATION_CACHE_DIR, or vipllava/programs in your cache folder]',
)
def vipllava(compilation_cache: str | None) -> None:
    """ViP-LLaVA: ask questions about the things that you mark on a picture.

    \b
    Examples:
      vipllava demo
      vipllava ask --image photo.jpg --mark rectangle:40,60,180,220:red "What is {mark}?"
      vipllava chat --image photo.jpg
      vipllava draw photo.jpg marked.png --mark arrow:40,60,180,220:blue
      vipllava convert llava-hf/vip-llava-7b-hf ./vip-llava-7b
      vipllava info --model ./vip-llava-7b
    """
    is_our_cache = compilation.use_cache(compilation_cache, os.environ)
    warnings.showwarning = warning_handler(is_our_cache)


def main(command: click.Command | None = None) -> None:
    """Runs `vipllava` or another command; after an error, exits without waiting for background threads."""
    signals.end_cleanly()
    try:
        run(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        code = flush_output(code)
        signals.end_at_once()
        pods = sys.modules.get('vipllava_jax.pods')
        if not code and not (pods and pods.used) and not in_background():
            raise
        os._exit(code)  # a normal exit may crash while a program is being compiled, or hang after joining


def flush_output(code: int) -> int:
    """Flushes stdout; returns the exit code. If flushing fails, it prints a message, and the code is 2."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has ended, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        click.echo(f'vipllava: standard output: {error.strerror}', err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 2
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return code


def run(command: click.Command | None = None) -> None:
    """Runs `vipllava` or another command; user errors and warnings are one line each on stderr."""
    for name in ('stdin', 'stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, 'r' if name == 'stdin' else 'w'))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # an answer may contain characters that the terminal cannot show
            stream.reconfigure(errors='backslashreplace')
    with warnings.catch_warnings():
        warnings.simplefilter('default', UserWarning)
        warnings.showwarning = warning_handler(False)
        try:
            sys.exit((refusing_empty(command) if command else vipllava)(standalone_mode=False))
        except click.exceptions.NoArgsIsHelpError as e:
            click.echo(e.ctx and e.ctx.get_help())
            sys.exit(0)
        except (click.Abort, KeyboardInterrupt):
            signals.end_by_interrupt()
        except Exception as error:
            if (message := user_error(error)) is None:
                raise
            fail(message)


def user_error(error: Exception) -> str | None:
    """The message of a user error; None for an error that is a bug."""
    match error:
        case click.UsageError() if error.ctx and error.message.startswith('Got unexpected extra argument'):
            return (
                f'{error.format_message()}: put an argument that contains spaces in quotes; '
                f'{error.ctx.command_path} --help lists the options'
            )
        case click.ClickException():
            return error.format_message()
        case OSError() if error.strerror:  # without a file name it is from standard output
            has_name = isinstance(error.filename, (str, bytes))
            name = os.fsdecode(error.filename) if has_name else 'standard output'
            return f'{name}: {error.strerror}'
        case OSError() | ValueError() | ImportError():
            return str(error)
        case MemoryError():
            return NO_MEMORY.format('this computer')
        case RuntimeError() if re.search(
            "RESOURCE_EXHAUSTED|Out of memory|can't start new thread", str(error)
        ):
            return NO_MEMORY.format('the device')
    return None


def warning_handler(is_our_cache: bool) -> Callable[..., None]:
    """A handler that shows each warning once on stderr.

    `is_our_cache` says whether damaged files in the folder of compiled programs may be deleted.
    """
    shown = set()

    def show(message: Warning | str, *_: object) -> None:
        line = compilation.plain_warning(
            str(message), Path(os.environ.get(compilation.FOLDER, '')), is_our_cache
        )
        if line and line not in shown:
            shown.add(line)
            click.echo(f'vipllava: {printable(line)}', err=True)

    return show


def fail(message: str) -> None:
    """Exits with one line on stderr and exit code 2."""
    click.echo(f'vipllava: {printable(message)}', err=True)
    sys.exit(2)
