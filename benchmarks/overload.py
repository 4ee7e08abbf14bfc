#!/usr/bin/env python3
"""Asks a server from as many clients as it has room for, then ten times as often as it can answer.

Needs only Python 3.11 and aiohttp. See README.md beside this file.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from open_loop import (
    Outcome,
    Request,
    add_picture_options,
    connect,
    first_model,
    make_requests,
    percentile,
    positive,
    read_range,
    send,
)

BACK_OFF = 0.5  # seconds that a client waits after it was refused, if there are as many clients as fit
REFUSED = 'status 429'


@dataclass
class Load:
    """What happened to requests; times are in seconds after they were sent."""

    outcomes: list[Outcome] = field(default_factory=list)  # of those that were not refused
    refusals: list[float] = field(default_factory=list)  # the time until the answer
    late: list[float] = field(default_factory=list)  # how much later than due requests were sent
    seconds: float = 0

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.error]

    def errors(self) -> Counter[str]:
        return Counter(outcome.error for outcome in self.outcomes if outcome.error)

    def add(self, outcome: Outcome, seconds: float) -> bool:
        """Counts a request that has ended after some time; returns whether it was refused."""
        if refused := outcome.error.startswith(REFUSED):
            self.refusals.append(seconds)
        else:
            self.outcomes.append(outcome)
        return refused

    def summary(self) -> dict[str, Any]:
        """The load as JSON, with times in milliseconds."""
        times = {
            'first_token_ms': [o.first_token for o in self.answered if o.first_token is not None],
            'last_token_ms': [o.last_token for o in self.answered if o.last_token is not None],
            'refusal_ms': self.refusals,
            'sent_late_ms': self.late,
        }
        return {
            'seconds': self.seconds,
            'answered': len(self.answered),
            'refused': len(self.refusals),
            **{name: times_in_ms(values) for name, values in times.items() if values},
            'errors': dict(self.errors()),
        }


def main() -> int:
    options = parse_arguments()
    full = asyncio.run(saturate(options))
    rate = len(full.answered) / full.seconds
    overloaded = overload(options, options.factor * rate)
    summaries = {'full': full.summary(), 'overloaded': overloaded.summary()}
    report(f'{options.clients} clients: {rate:.1f} answered per second', summaries['full'])
    report(f'{options.factor * rate:.0f} requests per second', summaries['overloaded'])
    if options.json:
        data = {'answered_per_s': rate, 'offered_per_s': options.factor * rate, **summaries}
        options.json.write_text(json.dumps(data, indent=1) + '\n')
    return 1 if full.errors() or overloaded.errors() else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Compare the answers of a server that is full with those of one that is overloaded.'
    )
    add = parser.add_argument
    add('url', help='of the server, such as http://127.0.0.1:8000')
    add(
        '--clients', type=positive, required=True, metavar='N', help='rows and places of the queue: what fits'
    )
    add(
        '--factor',
        type=positive,
        default=10,
        metavar='N',
        help='times as many requests as are answered (default: %(default)s)',
    )
    add('--seconds', type=float, default=60, metavar='S', help='of the overload (default: %(default)s)')
    add('--before', type=float, default=20, metavar='S', help='with what fits (default: %(default)s)')
    add('--processes', type=positive, default=4, metavar='N', help='that ask (default: %(default)s)')
    add('--words', type=read_range, default='16', metavar='N|A-B', help='per prompt (default: %(default)s)')
    add('--new', type=read_range, default='32', metavar='N|A-B', help='tokens (default: %(default)s)')
    add_picture_options(parser)
    options = parser.parse_args()
    options.one_picture, options.extra = False, {'ignore_eos': True}
    options.url = options.url.rstrip('/')
    return options


async def requests_for(session: aiohttp.ClientSession, options: argparse.Namespace) -> list[Request]:
    model = await first_model(session, f'{options.url}/v1')
    return make_requests(options, model, None, 64, 0)


async def saturate(options: argparse.Namespace) -> Load:
    """As many clients as fit ask again and again; the times count once all have had an answer."""
    load = Load()
    async with connect(options) as session:
        asked = itertools.cycle(await requests_for(session, options))
        for number, seconds in enumerate((min(options.before, 3), options.before)):
            load = Load() if number else load
            begin = time.perf_counter()
            clients = (
                client(session, options.url, asked, begin + seconds, load) for _ in range(options.clients)
            )
            await asyncio.gather(*clients)
            load.seconds = time.perf_counter() - begin
    return load


async def client(
    session: aiohttp.ClientSession, url: str, asked: Iterator[Request], end: float, load: Load
) -> None:
    """Asks again and again until the end; waits a little after a refusal."""
    while time.perf_counter() < end:
        if await ask(session, url, next(asked), load):
            await asyncio.sleep(BACK_OFF)


async def ask(session: aiohttp.ClientSession, url: str, request: Request, load: Load) -> bool:
    """Asks once; returns whether the request was refused."""
    outcome, begin = Outcome(), time.perf_counter()
    await send(session, f'{url}/v1/chat/completions', request, begin, outcome)
    return load.add(outcome, time.perf_counter() - begin)


def overload(options: argparse.Namespace, rate: float) -> Load:
    """Sends requests at random times, `rate` per second on average, from several processes."""
    n = options.processes
    with ProcessPoolExecutor(n) as pool:
        parts = [*pool.map(flood, [options] * n, [rate / n] * n, range(n))]
    both = Load(seconds=max(part.seconds for part in parts))
    for part in parts:
        both.outcomes += part.outcomes
        both.refusals += part.refusals
        both.late += part.late
    return both


def flood(options: argparse.Namespace, rate: float, number: int) -> Load:
    """The load of one process."""
    return asyncio.run(send_at_random(options, rate, random.Random(f'{options.seed} {number}')))


async def send_at_random(options: argparse.Namespace, rate: float, rng: random.Random) -> Load:
    load, tasks = Load(), set()
    async with connect(options) as session:
        asked = itertools.cycle(await requests_for(session, options))
        due = begin = time.perf_counter()
        while (due := due + rng.expovariate(rate)) < begin + options.seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            load.late.append(time.perf_counter() - due)
            tasks.add(task := asyncio.create_task(ask(session, options.url, next(asked), load)))
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        load.seconds = time.perf_counter() - begin
    return load


def times_in_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles and the longest of some times."""
    times = sorted(seconds)
    return {**{f'p{p}': percentile(times, p) * 1e3 for p in (50, 99)}, 'longest': times[-1] * 1e3}


def report(title: str, summary: dict[str, Any]) -> None:
    print(f'{title}: {summary["answered"]} answered, {summary["refused"]} refused')
    for name, found in summary.items():
        if name.endswith('_ms'):
            times = ', '.join(f'{key} {value:,.1f} ms' for key, value in found.items())
            print(f'  {name.removesuffix("_ms").replace("_", " ")}: {times}')
    for error, count in Counter(summary['errors']).most_common(10):
        print(f'  {count} x {error}')


if __name__ == '__main__':
    sys.exit(main())
