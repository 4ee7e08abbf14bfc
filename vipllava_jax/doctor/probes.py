"""What checks run in a process of their own: `python -m vipllava_jax.doctor.probes NAME ARGUMENTS`."""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 20  # bytes
WRITTEN = 16 * BLOCK
READ = 256 * BLOCK
CONNECT_SECONDS = 5.0
PREFIX = '.vipllava-doctor-'  # of the file that is written

Answers = Iterator[dict[str, Any]]


def write(folder: str) -> Answers:
    """Writes, reads and deletes a file in a folder or, if that does not exist, in its nearest parent."""
    path = Path(folder).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    data = os.urandom(BLOCK)
    begin = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=path, prefix=PREFIX) as file:
        for _ in range(WRITTEN // BLOCK):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - begin
        file.seek(0)
        same = file.read(BLOCK) == data
    disk = os.statvfs(path)
    yield {
        'folder': str(path),
        'same': same,
        'rate': WRITTEN / seconds,
        'free': disk.f_bavail * disk.f_frsize,
    }


def read(folder: str) -> Answers:
    """Opens every file of a folder, and reads the beginning of the largest."""
    files = sorted(file for file in Path(folder).rglob('*') if file.is_file())
    for file in files:
        with file.open('rb'):
            pass
    if not files:
        yield {'files': 0}
        return
    sizes = {file: file.stat().st_size for file in files}
    largest = max(files, key=lambda file: sizes[file])
    done, buffer, begin = 0, bytearray(16 * BLOCK), time.perf_counter()
    with largest.open('rb', buffering=0) as stream:
        while done < READ and (count := stream.readinto(buffer)):
            done += count
    seconds = time.perf_counter() - begin
    yield {'files': len(files), 'bytes': sum(sizes.values()), 'read': done, 'rate': done / max(seconds, 1e-9)}


def coordinator(address: str, count: str, index: str) -> Answers:
    """The place of this process, and whether the coordinator can be reached or, for process 0, its port used.

    Empty arguments are read from variables, or from the cluster that jax detects.
    """
    from vipllava_jax.clusters import find_place

    given: dict[str, Any] = {'coordinator': address or None, 'count': count or None, 'index': index or None}
    place = find_place('auto', given, os.environ, int(CONNECT_SECONDS))
    if place is None or not place.coordinator:
        yield {'place': None}
        return
    host, _, port = place.coordinator.rpartition(':')
    found = {'place': place.name, 'address': place.coordinator, 'index': place.index, 'by': place.found_by}
    try:
        with socket.create_connection((host.strip('[]'), int(port)), CONNECT_SECONDS):
            yield {**found, 'answers': True}
            return
    except OSError as error:
        problem, known = error.strerror or str(error), not isinstance(error, socket.gaierror)
    if place.index == 0:
        with socket.socket(socket.AF_INET6 if host.startswith('[') else socket.AF_INET) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind(('', int(port)))
                problem = ''
            except OSError as error:
                problem = error.strerror or str(error)
    yield {**found, 'answers': False, 'known': known, 'problem': problem}


def devices() -> Answers:
    """The local devices, then a test of each, then a sum over all of them."""
    from vipllava_jax.doctor import self_test

    yield self_test.list_devices()
    for index in range(self_test.count()):
        yield self_test.test_device(index)
    if self_test.count() > 1:
        yield self_test.add_over_devices(self_test.local_devices())


def join(address: str, count: str, index: str, seconds: str) -> Answers:
    """Joins the processes of a job, and adds over the devices of all; what is empty is found as by `eval`."""
    from vipllava_jax import pods

    numbers = (int(text) if text else None for text in (count, index))
    place = pods.join('on', address or None, *numbers, timeout=int(seconds))
    assert place is not None
    yield {'banner': pods.banner(place)}
    from vipllava_jax.doctor import self_test

    yield self_test.add_over_devices(self_test.all_devices())
    pods.leave()
    yield {'left': True}  # the others are not left in the middle


PROBES: dict[str, Callable[..., Answers]] = {f.__name__: f for f in (write, read, coordinator, devices, join)}


def main() -> None:
    name, *arguments = sys.argv[1:]
    try:
        for answer in PROBES[name](*arguments):
            print(json.dumps(answer), flush=True)
    except Exception as error:  # everything is reported to the process that asked
        path = getattr(error, 'filename', None)
        where = f'{path}: ' if isinstance(path, str) and PREFIX not in path else ''
        text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        print(json.dumps({'error': where + text, 'code': getattr(error, 'errno', None)}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # without waiting for a device that does not answer


if __name__ == '__main__':
    main()
