#!/usr/bin/env python3
"""Asks a server while others read their answers slowly, and while nobody does, and compares.

Needs only Python 3.11 and aiohttp. See README.md beside this file.
"""

import argparse
import asyncio
import itertools
import json
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import aiohttp
from open_loop import (
    TIMES,
    Request,
    Run,
    add_picture_options,
    connect,
    first_model,
    make_requests,
    percentile,
    positive,
    read_range,
)
from overload import Load, ask

WITHOUT, WITH = 'without slow readers', 'with slow readers'
ORDER = (WITHOUT, WITH), (WITH, WITHOUT)  # so that a drift of the machine favours neither
MOST = 1.05  # how much longer the slowest requests may take
RECEIVE_BUFFER = 4096  # bytes, so that answers wait at the server


@dataclass
class Slow:
    """What happened to the slow readers: the seconds of complete answers, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main() -> int:
    options = parse_arguments()
    runs: dict[str, Run] = {WITHOUT: Run(None), WITH: Run(None)}
    slow = Slow()
    asyncio.run(measure(options, runs, slow))
    p99 = {name: {key: percentile(run.times(key), 99) for key in TIMES} for name, run in runs.items()}
    change = {key: p99[WITH][key] / p99[WITHOUT][key] for key in TIMES}
    for name, run in runs.items():
        print(f'{name}: {len(run.answered)} answered in {run.seconds:.1f} s')
        for key, title in TIMES.items():
            p50 = percentile(run.times(key), 50)
            print(f'  {title}: p50 {p50 * 1e3:,.1f} ms, p99 {p99[name][key] * 1e3:,.1f} ms')
    print('p99 with slow readers: ' + ', '.join(f'{TIMES[key]} {r - 1:+.1%}' for key, r in change.items()))
    print(f'{len(slow.seconds)} answers were read slowly')
    for failure, count in Counter(slow.failures).most_common(10):
        print(f'{count} x slow reader: {failure}')
    if options.json:
        data = {'runs': {name: run.summary() for name, run in runs.items()}, 'p99_change': change}
        options.json.write_text(json.dumps({**data, 'slow': asdict(slow)}, indent=1) + '\n')
    failed = any(run.summary()['errors'] for run in runs.values())
    return 1 if failed or slow.failures or change['last_token'] > MOST else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Measure what slow readers cost the others.')
    add = parser.add_argument
    add('url', help='of the server, such as http://127.0.0.1:8000')
    add('--readers', type=positive, default=50, metavar='N', help='slow ones (default: %(default)s)')
    add('--pause', type=float, default=1, metavar='S', help='between two events (default: %(default)s)')
    add('--clients', type=positive, default=4, metavar='N', help='others, at a time (default: %(default)s)')
    add('--seconds', type=float, default=15, metavar='S', help='of each run (default: %(default)s)')
    add('--repeats', type=positive, default=3, metavar='N', help='of both (default: %(default)s)')
    add('--words', type=read_range, default='16', metavar='N|A-B', help='per prompt (default: %(default)s)')
    add('--new', type=read_range, default='32', metavar='N|A-B', help='tokens (default: %(default)s)')
    add('--slow-new', type=positive, default=128, metavar='N', help='of slow readers (default: %(default)s)')
    add_picture_options(parser)
    options = parser.parse_args()
    options.one_picture, options.extra = False, {'ignore_eos': True}
    options.url = options.url.rstrip('/')
    return options


async def measure(options: argparse.Namespace, runs: dict[str, Run], slow: Slow) -> None:
    async with connect(options) as session:
        model = await first_model(session, f'{options.url}/v1')
        requests = make_requests(options, model, None, 64, 0)
        asked = itertools.cycle(requests)
        await others(session, options, asked, Run(None), min(options.seconds, 3))
        for number in range(options.repeats):
            for name in ORDER[number % 2]:
                readers = [
                    asyncio.create_task(read_again(options, request, number, slow))
                    for number, request in enumerate(itertools.islice(asked, options.readers))
                    if name == WITH
                ]
                await idle(session, options.url)
                await others(session, options, asked, runs[name], options.seconds)
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)
                print(f'{name}: {len(runs[name].answered)} answered', file=sys.stderr)


async def idle(session: aiohttp.ClientSession, url: str) -> None:
    """Waits until the server has nothing to compute, also if slow readers still read."""
    for _ in range(600):
        await asyncio.sleep(0.2)
        async with session.get(f'{url}/metrics') as response:
            text = await response.text()
        if all(
            re.search(rf'^vipllava_num_requests_{name} 0\.0$', text, re.M) for name in ('running', 'waiting')
        ):
            return
    sys.exit('the server does not become idle')


async def others(
    session: aiohttp.ClientSession,
    options: argparse.Namespace,
    asked: Iterator[Request],
    run: Run,
    seconds: float,
) -> None:
    """A few clients ask again and again for some time, and read at full speed."""
    begin, load = time.perf_counter(), Load(outcomes=run.outcomes)

    async def client() -> None:
        while time.perf_counter() < begin + seconds:
            await ask(session, options.url, next(asked), load)

    await asyncio.gather(*(client() for _ in range(options.clients)))
    run.seconds += time.perf_counter() - begin


async def read_again(options: argparse.Namespace, request: Request, number: int, slow: Slow) -> None:
    """A slow reader that asks again after each answer; the first ones are of different lengths."""
    body = json.loads(request.body)
    tokens = max(1, options.slow_new * (number + 1) // options.readers)
    while True:
        body['max_tokens'], begin = tokens, time.perf_counter()
        if failure := await read_slowly(options, json.dumps(body).encode()):
            slow.failures.append(failure)
            await asyncio.sleep(1)
        else:
            slow.seconds.append(time.perf_counter() - begin)
        tokens = options.slow_new


async def read_slowly(options: argparse.Namespace, body: bytes) -> str:
    """Asks, and reads one event at a time, with pauses -> what went wrong, or nothing."""
    url = urlsplit(options.url)
    key = f'Authorization: Bearer {options.api_key}\r\n' if options.api_key else ''
    head = (
        f'POST {url.path}/v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n{key}'
        f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'
    )
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    client.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(client, (url.hostname, url.port or 80))
        reader, writer = await asyncio.open_connection(sock=client, limit=RECEIVE_BUFFER)
    except OSError as error:
        client.close()
        return type(error).__name__
    try:
        writer.write(head.encode() + body)
        event = await reader.readuntil(b'\n\n')
        if not event.startswith(b'HTTP/1.1 200'):
            return event.split(b'\r\n')[0].decode(errors='replace')
        while not event.endswith(b'[DONE]\n\n'):
            await asyncio.sleep(options.pause)
            event = await reader.readuntil(b'\n\n')
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        return type(error).__name__
    finally:
        writer.close()
    return ''


if __name__ == '__main__':
    sys.exit(main())
