#!/usr/bin/env python3
"""Measures a server with an OpenAI-compatible API under load; needs only Python 3.11 and aiohttp.

Requests arrive at random times whether or not earlier ones have been answered (an open loop), each with a new
random picture by default. See README.md beside this file.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

COMMON = (
    'time people way water day part place work week man world life hand child company number group '
    'problem fact right book word issue side kind head house service friend father power hour game line '
    'end member law car city community name president team idea body information back parent face level '
    'office door person art war history party result change reason air force red blue green small large '
    'old new long short high low late hard open dark light road river tree field stone bird dog fish ship '
    'train paper glass wood music song voice story letter page table window wall floor market school'
)
WORDS = COMMON.split()
TIMES = {'first_token': 'first token', 'per_token': 'per token', 'last_token': 'last token'}
PNG = bytes.fromhex('89504e470d0a1a0a')  # how each such file begins
LARGEST_EVENT = 1 << 20  # bytes of a line of the stream


@dataclass(frozen=True)
class Request:
    """The body of a request, and when it is due, in seconds from the start of its run."""

    body: bytes
    due: float


@dataclass
class Outcome:
    """What happened to a request; times are in seconds after it was due."""

    error: str = ''
    first_token: float | None = None
    last_token: float | None = None
    tokens: int = 0

    @property
    def per_token(self) -> float | None:
        if self.first_token is None or self.last_token is None or self.tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.tokens - 1)


@dataclass
class Run:
    """The outcomes of the requests of one run at one rate."""

    rate: float | None  # requests per second; None: all at once
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.error]

    def times(self, name: str) -> list[float]:
        """The known times of this name, in ascending order."""
        found = [getattr(outcome, name) for outcome in self.answered]
        return sorted(time for time in found if time is not None)

    def summary(self) -> dict[str, Any]:
        """The run as JSON: rates, percentiles in milliseconds, and the errors with their counts."""
        seconds, tokens = self.seconds or 1.0, sum(outcome.tokens for outcome in self.answered)
        percentiles = {
            f'{name}_ms': {f'p{p}': percentile(times, p) * 1e3 for p in (50, 90, 99)}
            for name in TIMES
            if (times := self.times(name))
        }
        return {
            'offered_per_s': self.rate,
            'requests': len(self.outcomes),
            'answered': len(self.answered),
            'seconds': self.seconds,
            'requests_per_s': len(self.answered) / seconds,
            'tokens_per_s': tokens / seconds,
            **percentiles,
            'errors': dict(Counter(outcome.error for outcome in self.outcomes if outcome.error)),
        }


def main() -> int:
    options = parse_arguments()
    runs: list[Run] = []
    with contextlib.suppress(KeyboardInterrupt):  # the runs so far are reported
        asyncio.run(measure(options, runs))
    summaries = [run.summary() for run in runs]
    print_table(summaries)
    if options.json:
        about = {name: value for name, value in vars(options).items() if name not in ('json', 'api_key')}
        data = {'options': about, 'runs': summaries}
        options.json.write_text(json.dumps(data, indent=1, default=str) + '\n')
    complete = len(runs) == len(options.rates) * options.repeats
    return 0 if complete and not any(summary['errors'] for summary in summaries) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Measure a server with an OpenAI-compatible API under load.',
        epilog='Example: open_loop.py http://127.0.0.1:8000/v1 --rates max,5,10,20 --requests 256 --new 64',
    )
    add = parser.add_argument
    add('url', help='the base of the API, such as http://127.0.0.1:8000/v1')
    add('--model', metavar='M', help='the name of the model (default: the first that the server lists)')
    add(
        '--rates',
        type=read_rates,
        default='max',
        metavar='R,…',
        help='requests per second on average, or max for all at once; several are measured one after another '
        '(default: max)',
    )
    add('--requests', type=positive, default=256, metavar='N', help='requests per run (default: %(default)s)')
    add('--repeats', type=positive, default=1, metavar='N', help='runs per rate (default: %(default)s)')
    add('--warm-up', type=int, default=8, metavar='N', help='requests beforehand (default: %(default)s)')
    add('--words', type=read_range, default='52', metavar='N|A-B', help=word_help())
    add(
        '--new',
        type=read_range,
        default='64',
        metavar='N|A-B',
        help='tokens per answer, or a range from which they are drawn (default: %(default)s)',
    )
    add(
        '--side',
        type=int,
        default=336,
        metavar='N',
        help='pixels per side of a picture; 0: no picture (default: %(default)s)',
    )
    add('--one-picture', action='store_true', help='all requests of a run are about one picture')
    add(
        '--extra',
        type=read_object,
        default='{"ignore_eos": true}',
        metavar='JSON',
        help='further fields of each request (default: %(default)s, so that answers have their full length)',
    )
    add('--seed', type=int, default=0, metavar='N', help='of words, pictures and arrivals (default: 0)')
    add('--timeout', type=float, default=300, metavar='S', help='seconds per request (default: %(default)s)')
    add('--api-key', default=os.environ.get('OPENAI_API_KEY'), metavar='K', help='default: $OPENAI_API_KEY')
    add('--json', type=Path, metavar='FILE', help='write the results to this file')
    return parser.parse_args()


def connect(options: argparse.Namespace) -> aiohttp.ClientSession:
    """A session with the API key, and with as many connections as there are requests."""
    headers = {'Authorization': f'Bearer {options.api_key}'} if options.api_key else {}
    return aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0))


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of scripts that ask our own server about small pictures."""
    parser.add_argument(
        '--side', type=int, default=64, metavar='N', help='pixels per side of pictures (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='default: 0')
    parser.add_argument(
        '--api-key',
        default=os.environ.get('VIPLLAVA_API_KEY'),
        metavar='K',
        help='default: $VIPLLAVA_API_KEY',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file')


def word_help() -> str:
    return (
        'words per prompt, each about one token, or a range from which they are drawn (default: %(default)s)'
    )


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number from 1')
    return number


def read_rates(text: str) -> list[float | None]:
    """'max,5,10' -> [None, 5.0, 10.0]."""
    rates = [None if part == 'max' else float(part) for part in text.split(',')]
    if any(rate is not None and not 0 < rate < 1e6 for rate in rates):
        raise argparse.ArgumentTypeError(f'{text}: expected max or numbers above 0')
    return rates


def read_range(text: str) -> tuple[int, int]:
    """'52' -> (52, 52); '24-924' -> (24, 924)."""
    low, _, high = text.partition('-')
    found = int(low), int(high or low)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f'{text}: expected N or A-B, from 1')
    return found


def read_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'not JSON: {error}') from None
    if not isinstance(data, dict):
        raise argparse.ArgumentTypeError(f'{text}: expected a JSON object')
    return data


async def measure(options: argparse.Namespace, runs: list[Run]) -> None:
    """Adds a run to `runs` for each rate and repeat; an interrupted run keeps its outcomes."""
    headers = {'Authorization': f'Bearer {options.api_key}'} if options.api_key else {}
    timeout = aiohttp.ClientTimeout(total=options.timeout)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector, read_bufsize=LARGEST_EVENT
    ) as session:
        model = options.model or await first_model(session, options.url)
        if options.warm_up:
            warm_up = Run(None)
            await send_all(session, options, make_requests(options, model, None, options.warm_up, 0), warm_up)
            for error, count in warm_up.summary()['errors'].items():
                print(f'warm-up: {count} x {error}', file=sys.stderr)
        for number in range(1, 1 + len(options.rates) * options.repeats):
            rate = options.rates[(number - 1) % len(options.rates)]
            runs.append(run := Run(rate))
            requests = make_requests(options, model, rate, options.requests, number)
            await send_all(session, options, requests, run)
            print(f'{name_of(rate)}: {run.summary()["requests_per_s"]:.2f} requests/s', file=sys.stderr)


async def first_model(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f'{url.rstrip("/")}/models') as response:
            return str((await response.json())['data'][0]['id'])
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError) as error:
        sys.exit(f'{url}/models: {describe(error)}: give the base of an API that runs, and perhaps --model')


def make_requests(
    options: argparse.Namespace, model: str, rate: float | None, count: int, number: int
) -> list[Request]:
    """The requests of run `number`, which share no picture with those of other runs."""
    rng = random.Random(f'{options.seed} {number}')
    requests, due, picture = [], 0.0, ''
    for _ in range(count):
        due += 0.0 if rate is None else rng.expovariate(rate)
        words = ' '.join(rng.choices(WORDS, k=rng.randint(*options.words)))
        content: list[dict[str, Any]] = [{'type': 'text', 'text': words}]
        if options.side:
            if not (picture and options.one_picture):
                picture = random_picture(rng, options.side)
            content.insert(0, {'type': 'image_url', 'image_url': {'url': picture}})
        body = {
            'model': model,
            'messages': [{'role': 'user', 'content': content}],
            'max_tokens': rng.randint(*options.new),
            'temperature': 0,
            'stream': True,
            'stream_options': {'include_usage': True},
            **options.extra,
        }
        requests.append(Request(json.dumps(body).encode(), due))
    return requests


def random_picture(rng: random.Random, side: int) -> str:
    """A PNG file of random pixels as a data URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = b''.join(b'\0' + rng.randbytes(3 * side) for _ in range(side))
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    parts = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows, 1)), chunk(b'IEND', b'')
    return f'data:image/png;base64,{base64.b64encode(PNG + b"".join(parts)).decode()}'


async def send_all(
    session: aiohttp.ClientSession, options: argparse.Namespace, requests: list[Request], run: Run
) -> None:
    """Sends each request when it is due, and waits for all answers."""
    url, begin = f'{options.url.rstrip("/")}/chat/completions', time.perf_counter()
    tasks = []
    try:
        for request in requests:
            await asyncio.sleep(max(0.0, begin + request.due - time.perf_counter()))
            run.outcomes.append(outcome := Outcome('interrupted'))
            tasks.append(asyncio.create_task(send(session, url, request, begin + request.due, outcome)))
        await asyncio.gather(*tasks)
    finally:
        run.seconds = time.perf_counter() - begin
        for task in tasks:
            task.cancel()


async def send(
    session: aiohttp.ClientSession, url: str, request: Request, due: float, outcome: Outcome
) -> None:
    """Sends a request, and records its tokens as they arrive."""
    try:
        headers = {'Content-Type': 'application/json'}
        async with session.post(url, data=request.body, headers=headers) as response:
            if response.status != 200:
                outcome.error = f'status {response.status}: {printable((await response.text())[:200])}'
                return
            outcome.error = await read_stream(response, due, outcome)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError) as error:
        outcome.error = describe(error)


async def read_stream(response: aiohttp.ClientResponse, due: float, outcome: Outcome) -> str:
    """Reads the events of an answer -> what is wrong with it, or nothing.

    The number of tokens is the server's; of one that does not count them, the number of events with text.
    """
    events, counted, finished = 0, 0, False
    async for line in response.content:
        if not line.startswith(b'data:') or (data := line[5:].strip()) == b'[DONE]':
            continue
        event = json.loads(data)
        if error := event.get('error'):
            return f'error in the stream: {printable(json.dumps(error)[:200])}'
        counted = (event.get('usage') or {}).get('completion_tokens') or counted
        for choice in event.get('choices') or ():
            finished = finished or bool(choice.get('finish_reason'))
            if (choice.get('delta') or {}).get('content') or choice.get('finish_reason'):
                now = time.perf_counter() - due
                outcome.first_token = now if outcome.first_token is None else outcome.first_token
                outcome.last_token = now
                events += 1
    outcome.tokens = counted or events
    return '' if finished else 'the stream ended without a finish_reason'


def percentile(values: list[float], p: float) -> float:
    """A percentile of values in ascending order, interpolated linearly."""
    place = (len(values) - 1) * p / 100
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def print_table(summaries: list[dict[str, Any]]) -> None:
    """One line per run: rates, and the median and 99th percentile of each time in milliseconds."""
    columns = [
        'rate',
        'answered',
        'requests/s',
        'tokens/s',
        *(f'{title}: p50 / p99' for title in TIMES.values()),
    ]
    rows = [columns]
    for summary in summaries:
        times = [summary.get(f'{name}_ms') for name in TIMES]
        rows.append(
            [
                name_of(summary['offered_per_s']),
                f'{summary["answered"]} of {summary["requests"]}',
                f'{summary["requests_per_s"]:.2f}',
                f'{summary["tokens_per_s"]:,.0f}',
                *(f'{time["p50"]:,.1f} / {time["p99"]:,.1f}' if time else '' for time in times),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print('  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for error, count in sum((Counter(summary['errors']) for summary in summaries), Counter()).most_common(10):
        print(f'{count} x {error}')


def name_of(rate: float | None) -> str:
    return 'max' if rate is None else f'{rate:g}/s'


def describe(error: BaseException) -> str:
    return printable(f'{type(error).__name__}: {error}')[:300]


def printable(text: str) -> str:
    """A text of a server without what a terminal would interpret."""
    return ''.join(c if c.isprintable() else ' ' for c in text)


if __name__ == '__main__':
    sys.exit(main())
