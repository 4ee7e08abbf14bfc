#!/usr/bin/env python3
"""Asks a server from as many clients as it has room for, then from ten times as many, and compares.

Needs only Python 3.11 and aiohttp. See README.md beside this file.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from open_loop import (
    Outcome,
    Request,
    add_picture_options,
    first_model,
    make_requests,
    percentile,
    positive,
    read_range,
    send,
)

BACK_OFF = 0.5  # seconds that a client waits after it was refused
REFUSED = 'status 429'


@dataclass
class Load:
    """What happened to the requests of a number of clients."""

    clients: int
    outcomes: list[Outcome] = field(default_factory=list)  # of those that were not refused
    refusals: list[float] = field(default_factory=list)  # seconds until the answer

    def report(self) -> None:
        answered = [outcome for outcome in self.outcomes if not outcome.error]
        print(f'{self.clients} clients: {len(answered)} answered, {len(self.refusals)} refused')
        show('  first token', [o.first_token for o in answered if o.first_token is not None])
        show('  last token', [o.last_token for o in answered if o.last_token is not None])
        show('  refusal', self.refusals)
        for error, count in self.errors().most_common(10):
            print(f'  {count} x {error}')

    def errors(self) -> Counter[str]:
        return Counter(outcome.error for outcome in self.outcomes if outcome.error)


def main() -> int:
    options = parse_arguments()
    loads = asyncio.run(measure(options))
    for load in loads:
        load.report()
    return 1 if any(load.errors() for load in loads) else 0


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
        help='times as many clients (default: %(default)s)',
    )
    add('--seconds', type=float, default=60, metavar='S', help='of each load (default: %(default)s)')
    add('--words', type=read_range, default='16', metavar='N|A-B', help='per prompt (default: %(default)s)')
    add('--new', type=read_range, default='32', metavar='N|A-B', help='tokens (default: %(default)s)')
    add_picture_options(parser)
    options = parser.parse_args()
    options.one_picture, options.extra = False, {'ignore_eos': True}
    options.url = options.url.rstrip('/')
    return options


async def measure(options: argparse.Namespace) -> list[Load]:
    """The load of as many clients as fit, and that of more."""
    headers = {'Authorization': f'Bearer {options.api_key}'} if options.api_key else {}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        model = await first_model(session, f'{options.url}/v1')
        requests = make_requests(options, model, None, 64, 0)
        loads = [Load(options.clients), Load(options.clients * options.factor)]
        for load in loads:
            end = time.perf_counter() + options.seconds
            clients = (client(session, options.url, requests, n, end, load) for n in range(load.clients))
            await asyncio.gather(*clients)
    return loads


async def client(
    session: aiohttp.ClientSession, url: str, requests: list[Request], number: int, end: float, load: Load
) -> None:
    """Asks again and again until the end; waits a little after a refusal."""
    while (begin := time.perf_counter()) < end:
        number += 1
        outcome = Outcome()
        await send(session, f'{url}/v1/chat/completions', requests[number % len(requests)], begin, outcome)
        if outcome.error.startswith(REFUSED):
            load.refusals.append(time.perf_counter() - begin)
            await asyncio.sleep(BACK_OFF)
        else:
            load.outcomes.append(outcome)


def show(name: str, seconds: list[float]) -> None:
    if times := sorted(seconds):
        p50, p99 = (percentile(times, p) * 1e3 for p in (50, 99))
        print(f'{name}: p50 {p50:,.1f} ms, p99 {p99:,.1f} ms, longest {times[-1] * 1e3:,.1f} ms')


if __name__ == '__main__':
    sys.exit(main())
