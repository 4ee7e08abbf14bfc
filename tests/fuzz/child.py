"""The process in which inputs are tried: reads a folder per line of stdin, and answers with a verdict.

A verdict is '' if all is well, or else what is wrong. What ends or halts this process is seen by its parent.
"""

import contextlib
import json
import os
import re
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

LONGEST = {'stderr': 600, 'message': 10_000, 'warning': 10_000}  # characters of a line; the command cuts
MOST = 2 << 30  # bytes of memory
MEMORY = f'more than {MOST >> 30} GiB of memory'
NO_MEMORY = 'not enough memory'  # of a command's message: to run out of memory is a fault


class Output:
    """What is written to stdout and stderr, by whatever library."""

    def __init__(self) -> None:
        self.files = {number: tempfile.TemporaryFile() for number in (1, 2)}  # noqa: SIM115
        for number, file in self.files.items():
            os.dup2(file.fileno(), number)

    def take(self) -> dict[int, str]:
        sys.stdout.flush()
        sys.stderr.flush()
        texts = {}
        for number, file in self.files.items():
            file.seek(0)
            texts[number] = file.read().decode('utf-8', 'replace')
            file.seek(0)
            file.truncate()
        return texts


def verdict(read: Callable[[Path], None], folder: Path, output: Output) -> str:
    """What is wrong with how a reader takes a folder."""
    code: object = None
    message, sys.stdin = '', open(os.devnull)  # noqa: SIM115
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            read(folder)
        except (ValueError, OSError) as error:
            message = str(error).replace(f'{folder}/', '')
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            return f'{type(error).__name__} at {place(error)}: {clean(str(error))}'
    texts = output.take()
    told = [('message', message), ('stderr', texts[2]), *(('warning', str(w.message)) for w in caught)]
    for name, text in told:
        if why := wrong(text, LONGEST[name]):
            return f'{name} {why}'
    if not texts[1].replace('\n', '').replace('\t', '').isprintable():
        return f'stdout has control characters: {clean(texts[1])}'
    if code not in (None, 0, 2):
        return f'exit code {code}: {clean(texts[2])}'
    if code == 2 and not ('\n' + texts[2]).rpartition('\nvipllava: ')[1]:
        return f'exit code 2 without a message: {clean(texts[2])}'
    return ''


def wrong(text: str, longest: int) -> str:
    """What is wrong with a text that a user is to read."""
    if 'Traceback (most recent call last)' in text or 'panicked at' in text:
        return f'has a traceback: {clean(text)}'
    for line in text.split('\n'):
        if not line.isprintable():
            return f'has control characters: {clean(line)}'
        if len(line) > longest:
            return f'has a line of {len(line)} characters: {clean(line)}'
    return f'says that memory is short: {clean(text)}' if NO_MEMORY in text else ''


def place(error: BaseException) -> str:
    """The last line of the package, or of the harness, that an exception came through."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if 'site-packages' not in frame.filename
    ]
    own = [frame for frame in frames if re.search('/vipllava_(jax|convert)/', frame.filename)] or frames
    return f'{Path(own[-1].filename).name}:{own[-1].lineno}' if own else '?'


def clean(text: str) -> str:
    return ascii(text[:300] + (f' … {text[-200:]}' if len(text) > 500 else text[300:]))[1:-1]


def grown() -> int:
    """The most memory, in bytes, of this process and of those it has started, since it was last asked."""
    peak = 0
    for process in processes():
        with contextlib.suppress(OSError):  # it may have ended
            found = re.search(r'VmHWM:\s+(\d+) kB', Path(f'/proc/{process}/status').read_text())
            peak += int(found[1]) << 10 if found else 0
            Path(f'/proc/{process}/clear_refs').write_text('5')
    return peak


def processes() -> list[str]:
    """This process and those that its threads have started."""
    found = ['self']
    for thread in Path('/proc/self/task').iterdir():
        with contextlib.suppress(OSError):  # it may have ended
            found += (thread / 'children').read_text().split()
    return found


def limit(more: int) -> None:
    """Lets this process, and each of those that it starts, have so much more memory than it has."""
    found = re.search(r'VmData:\s+(\d+) kB', Path('/proc/self/status').read_text())
    most = (int(found[1]) << 10 if found else 0) + more
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main(module: str, name: str) -> None:
    read = getattr(import_module(module), name)
    answers = os.fdopen(os.dup(1), 'w')
    folders = os.fdopen(os.dup(0))
    output = Output()
    for number, line in enumerate(folders):
        told = verdict(read, Path(line.rstrip('\n')), output)
        if grown() > MOST and not told:
            told = MEMORY
        output.take()
        answers.write(json.dumps(told) + '\n')
        answers.flush()
        if number == 0:
            limit(2 * MOST)  # the first input is a valid one, after which all is imported and compiled


if __name__ == '__main__':
    main(*sys.argv[1:])
