"""The process in which inputs are tried: reads a folder's path per line of stdin, and prints its fault.

A fault is described by a line of JSON, '' if there is none. The parent notices if an input ends or blocks
this process.
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

MAX_LENGTH = {'stderr': 600, 'message': 10_000, 'warning': 10_000}  # characters; the command shortens them
NO_MEMORY = 'not have enough memory'  # a message of the command that counts as a fault


class Output:
    """Captures everything written to stdout and stderr, also by C libraries."""

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


def find_fault(read: Callable[[Path], None], folder: Path, output: Output) -> str:
    """Runs a reader on a folder; returns a description of its fault, or ''."""
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
            return f'{type(error).__name__} at {location(error)}: {escaped(str(error))}'
    texts = output.take()
    texts_shown = [('message', message), ('stderr', texts[2]), *(('warning', str(w.message)) for w in caught)]
    for name, text in texts_shown:
        if fault := text_fault(text, MAX_LENGTH[name]):
            return f'{name} {fault}'
    if not texts[1].replace('\n', '').replace('\t', '').isprintable():
        return f'stdout has control characters: {escaped(texts[1])}'
    if code not in (None, 0, 2):
        return f'exit code {code}: {escaped(texts[2])}'
    if code == 2 and not ('\n' + texts[2]).rpartition('\nvipllava: ')[1]:
        return f'exit code 2 without a message: {escaped(texts[2])}'
    return ''


def text_fault(text: str, max_length: int) -> str:
    """What is wrong with a text for the user, or ''."""
    if 'Traceback (most recent call last)' in text or 'panicked at' in text:
        return f'has a traceback: {escaped(text)}'
    for line in text.split('\n'):
        if not line.isprintable():
            return f'has control characters: {escaped(line)}'
        if len(line) > max_length:
            return f'has a line of {len(line)} characters: {escaped(line)}'
    return f'reports a lack of memory: {escaped(text)}' if NO_MEMORY in text else ''


def location(error: BaseException) -> str:
    """The innermost line of the package, or of the harness, in an exception's traceback."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if 'site-packages' not in frame.filename
    ]
    in_package = [frame for frame in frames if re.search('/vipllava_jax/', frame.filename)] or frames
    return f'{Path(in_package[-1].filename).name}:{in_package[-1].lineno}' if in_package else '?'


def escaped(text: str) -> str:
    """The start and the end of a text, with control characters escaped."""
    return ascii(text[:300] + (f' … {text[-200:]}' if len(text) > 500 else text[300:]))[1:-1]


def peak_memory() -> int:
    """The peak memory in bytes of this process and its children since the last call."""
    peak = 0
    for process in processes():
        with contextlib.suppress(OSError):  # it may have ended
            found = re.search(r'VmHWM:\s+(\d+) kB', Path(f'/proc/{process}/status').read_text())
            peak += int(found[1]) << 10 if found else 0
            Path(f'/proc/{process}/clear_refs').write_text('5')
    return peak


def processes() -> list[str]:
    """The ids of this process and of its children."""
    found = ['self']
    for thread in Path('/proc/self/task').iterdir():
        with contextlib.suppress(OSError):  # it may have ended
            found += (thread / 'children').read_text().split()
    return found


def memory_fault(memory: int) -> str:
    """The fault of an input for which more than `memory` bytes are needed."""
    return f'more than {memory >> 20} MiB of memory'


def limit_memory(more: int) -> None:
    """Limits the further memory of this process and of each process that it starts."""
    found = re.search(r'VmData:\s+(\d+) kB', Path('/proc/self/status').read_text())
    limit = (int(found[1]) << 10 if found else 0) + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main(module: str, name: str, memory: int) -> None:
    read = getattr(import_module(module), name)
    faults = os.fdopen(os.dup(1), 'w')
    folders = os.fdopen(os.dup(0))
    output = Output()
    for number, line in enumerate(folders):
        fault = find_fault(read, Path(line.rstrip('\n')), output)
        if peak_memory() > memory and not fault:
            fault = memory_fault(memory)
        output.take()
        faults.write(json.dumps(fault) + '\n')
        faults.flush()
        if number == 0:
            limit_memory(2 * memory)  # the valid first input, which imports and compiles everything


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
