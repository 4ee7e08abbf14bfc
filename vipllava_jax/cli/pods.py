"""The options for joining the processes of several hosts, and how they speak with one voice."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.messages import one_line, printable

F = TypeVar('F', bound=Callable[..., Any])
NOTICE_SECONDS = 5.0  # without the others, after which the command says that it waits
SECONDS = WholeNumber(1, 86_400)


def distributed_options(command: F) -> F:
    """The options of `joined_pod`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        '--distributed',
        type=click.Choice(('auto', 'on', 'off')),
        default='auto',
        show_default=True,
        help='Whether the processes of several hosts join, so that --mesh holds the devices of all: auto '
        'joins if there are several, on requires it.',
    ),
    click.option(
        '--coordinator',
        metavar='HOST:PORT',
        help='The address of process 0.  [default: JAX_COORDINATOR_ADDRESS, or that of Slurm, Open MPI, '
        'Kubernetes or Cloud TPU]',
    ),
    click.option(
        '--process-count',
        metavar='N',
        type=WholeNumber(1, 1 << 20),
        help="The number of processes.  [default: JAX_NUM_PROCESSES, or the cluster's]",
    ),
    click.option(
        '--process-index',
        metavar='I',
        type=WholeNumber(0, 1 << 20),
        help="The index of this process, from 0.  [default: JAX_PROCESS_ID, or the cluster's]",
    ),
    click.option(
        '--initialization-timeout',
        metavar='S',
        type=SECONDS,
        default=300,
        show_default=True,
        help='The seconds within which all processes must have started.',
    ),
    click.option(
        '--heartbeat-timeout',
        metavar='S',
        type=SECONDS,
        default=100,
        show_default=True,
        help='The seconds after which a process without a sign of life ends all others.',
    ),
]


@contextlib.contextmanager
def joined_pod(options: dict[str, Any]) -> Iterator[bool]:
    """Removes the values of `distributed_options` from the options, and joins the processes for the block.

    Yields whether this is the process that prints and writes; what the others print is discarded. Each
    process shows its place on stderr. At the end of the block, and where it raises a PodError or a
    SystemExit, which must be in all processes, they wait for one another.
    """
    from vipllava_jax import pods
    from vipllava_jax.cli import user_error

    timeout = options.pop('initialization_timeout')
    with _notice(f'waiting for the other processes, at most {timeout} s'):
        place = pods.join(
            options.pop('distributed'),
            *(options.pop(name) for name in ('coordinator', 'process_count', 'process_index')),
            timeout=timeout,
            heartbeat=options.pop('heartbeat_timeout'),
        )
    if pods.process_count() == 1:
        yield True
        return
    is_first = pods.is_first()
    if place:
        click.echo(f'vipllava: {printable(pods.banner(place))}', err=True)
    try:
        with _one_voice(is_first):
            keep_only_shared_programs()
            yield is_first
    except pods.PodError as error:
        pods.leave()
        cause = error.__cause__
        is_bug = isinstance(cause, Exception) and user_error(cause) is None
        raise (cause or error if is_first or is_bug else SystemExit(2)) from None
    except SystemExit:
        pods.leave()
        raise
    except RuntimeError as error:
        if user_error(error) is not None:
            raise
        name = f'process {pods.process_index()} of {pods.process_count()}'
        message = f'{name} has lost the others, of which one may have ended: {one_line(error)}'
        raise ValueError(f'{message}: see their output; the same command resumes') from None
    pods.leave()


def check_same(options: Mapping[str, Any]) -> None:
    """Raises PodError, in all processes, if they have different options; all must call it.

    Processes that run different programs would wait for one another forever.
    """
    from vipllava_jax import pods

    values = pods.gather(
        {name: printable(str(value), 80) if value else 'not given' for name, value in options.items()}
    )
    for index, other in enumerate(values):
        for name, first in values[0].items():
            if other[name] != first:
                option = f'--{name.replace("_", "-")}'
                raise pods.PodError(
                    f'{option} is {first} in process 0, but {other[name]} in process {index}: give all '
                    'processes the same options'
                )


def keep_only_shared_programs() -> None:
    """Stores no compiled programs if not all processes see the same folder of them.

    Only process 0 writes there. It would load a program while the others compile it, and on GPUs they share
    the work of tuning it with process 0, so that they would wait for it forever.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from vipllava_jax import pods

    folder = jax.config.values['jax_compilation_cache_dir']
    if any(pods.gather(folder is not None)) and not pods.see_same_folder(folder):
        jax.config.update('jax_enable_compilation_cache', False)
        compilation_cache.reset_cache()
        text = f'{folder or "the compilation cache"} is not the same folder for all processes'
        click.echo(f'vipllava: {printable(text)}: compiled programs are not kept there', err=True)


@contextlib.contextmanager
def _notice(text: str) -> Iterator[None]:
    """Shows a line on stderr if the block takes longer than NOTICE_SECONDS."""
    timer = threading.Timer(NOTICE_SECONDS, click.echo, [f'vipllava: {text}'], {'err': True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _one_voice(is_first: bool) -> Iterator[None]:
    """Within the block only process 0 prints on stdout and stderr; later the others also show their errors.

    Libraries that print on stdout without Python do so on stderr from now on.
    """
    sys.stdout.flush()
    target: Any = os.dup(1) if is_first else os.devnull
    sys.stdout = open(target, 'w', encoding=sys.stdout.encoding, errors='backslashreplace')  # noqa: SIM115
    os.dup2(2, 1)
    stderr = sys.stderr
    with open(os.devnull, 'w') as silence:
        if not is_first:
            sys.stderr = silence
        try:
            yield
        finally:
            sys.stderr = stderr
            sys.stdout.flush()
