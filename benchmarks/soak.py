#!/usr/bin/env python3
"""Sends many requests to a server of this package, cancels some of them, and looks for what grows.

Needs only Python 3.11 and aiohttp. See README.md beside this file.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import aiohttp
from open_loop import (
    Outcome,
    add_picture_options,
    connect,
    first_model,
    make_requests,
    percentile,
    positive,
    read_range,
    send,
)

MB = 1e6
PICTURES = 64  # which are asked about in turn, so that their prefixes are all stored after the warm-up
CRITERIA = {
    'memory': 1.02,
    'files': 1.0,
}  # how much may be left at the end of what there was at the beginning


class State(NamedTuple):
    """What a server holds while nobody asks it."""

    memory: float  # bytes, of all its processes
    files: int  # open descriptors of its main process
    compilations: int  # since it was ready
    running: int


def main() -> int:
    options = parse_arguments()
    before, after, outcomes, seconds = asyncio.run(soak(options))
    errors = Counter(outcome.error for outcome in outcomes if outcome.error and outcome.error != 'cancelled')
    cancelled = sum(outcome.error == 'cancelled' for outcome in outcomes)
    times = sorted(outcome.last_token for outcome in outcomes if not outcome.error and outcome.last_token)
    print(
        f'{len(outcomes)} requests in {seconds:.0f} s, {cancelled} cancelled, {sum(errors.values())} failed'
    )
    print(f'last token: p50 {percentile(times, 50) * 1e3:.0f} ms, p99 {percentile(times, 99) * 1e3:.0f} ms')
    print(f'memory: {before.memory / MB:.1f} -> {after.memory / MB:.1f} MB', end=' ')
    print(f'({after.memory / before.memory - 1:+.2%})')
    print(f'open files: {before.files} -> {after.files}; compilations: {after.compilations}')
    for error, count in errors.most_common(10):
        print(f'{count} x {error}')
    if options.json:
        data = {
            'requests': len(outcomes),
            'seconds': seconds,
            'cancelled': cancelled,
            'errors': errors,
            'before': before._asdict(),
            'after': after._asdict(),
        }
        options.json.write_text(json.dumps(data, indent=1) + '\n')
    grown = [name for name, most in CRITERIA.items() if getattr(after, name) > most * getattr(before, name)]
    if grown:
        print('grown: ' + ', '.join(grown))
    return 1 if grown or errors or after.compilations else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Look for what grows in a server of this package.')
    add = parser.add_argument
    add('url', help='of the server, such as http://127.0.0.1:8000')
    add(
        '--pid', type=int, metavar='N', help='its process on this computer: counts the memory of its children'
    )
    add('--requests', type=positive, default=20_000, metavar='N', help='default: %(default)s')
    add('--minutes', type=float, default=0, metavar='M', help='spread them over this time')
    add('--warm-up', type=positive, default=1000, metavar='N', help='beforehand (default: %(default)s)')
    add('--clients', type=positive, default=16, metavar='N', help='at a time (default: %(default)s)')
    add('--cancel', type=float, default=0.1, metavar='P', help='share of requests (default: %(default)s)')
    add('--words', type=read_range, default='4-40', metavar='A-B', help='per prompt (default: %(default)s)')
    add('--new', type=read_range, default='1-32', metavar='A-B', help='tokens (default: %(default)s)')
    add_picture_options(parser)
    options = parser.parse_args()
    options.one_picture, options.extra, options.url = False, {}, options.url.rstrip('/')
    return options


async def soak(options: argparse.Namespace) -> tuple[State, State, list[Outcome], float]:
    """The states before and after the requests, what happened to these, and the seconds that they took."""
    warm_up = await ask(options, options.warm_up)
    typical = percentile(sorted(o.last_token for o in warm_up if o.last_token is not None) or [1.0], 50)
    before = await idle_state(options)
    begin = time.perf_counter()
    outcomes = await ask(options, options.requests, typical, options.minutes * 60)
    seconds = time.perf_counter() - begin
    return before, await idle_state(options), outcomes, seconds


async def ask(
    options: argparse.Namespace, count: int, cancel_within: float = 0, seconds: float = 0
) -> list[Outcome]:
    """Sends requests from several clients, in `seconds` or longer.

    A share of them is cancelled at random times, up to `cancel_within` seconds, unless that is 0.
    """
    outcomes: list[Outcome] = []
    async with connect(options) as session:
        base = f'{options.url}/v1'
        model = await first_model(session, base)
        made = make_requests(options, model, None, PICTURES, 0)
        requests = enumerate(itertools.islice(itertools.cycle(made), count))
        rng, begin = random.Random(options.seed), time.perf_counter()

        async def client() -> None:
            for number, request in requests:
                due = begin + seconds * number / count
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                outcome = Outcome()
                sending = send(session, f'{base}/chat/completions', request, time.perf_counter(), outcome)
                is_cancelled = cancel_within and rng.random() < options.cancel
                patience = rng.uniform(0, cancel_within) if is_cancelled else None
                try:
                    await asyncio.wait_for(sending, patience)
                except TimeoutError:
                    outcome.error = 'cancelled'
                outcomes.append(outcome)
                if len(outcomes) % max(1, count // 20) == 0:
                    print(f'{len(outcomes)} of {count}', file=sys.stderr)

        await asyncio.gather(*(client() for _ in range(options.clients)))
    return outcomes


async def idle_state(options: argparse.Namespace) -> State:
    """The state of the server when it has nothing to do."""
    for _ in range(60):
        await asyncio.sleep(1)  # in which it notices that connections are closed
        state = await read_state(options)
        if not state.running:
            return state
    sys.exit('the server does not become idle: rows of cancelled requests are still running')


async def read_state(options: argparse.Namespace) -> State:
    async with aiohttp.ClientSession() as session, session.get(f'{options.url}/metrics') as response:
        text = await response.text()

    def value(name: str) -> float:
        found = re.search(rf'^{name} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else sys.exit(f'{options.url}/metrics has no {name}')

    memory = (
        sum(map(resident, family(options.pid))) if options.pid else value('process_resident_memory_bytes')
    )
    files, running = value('process_open_fds'), value('vipllava_num_requests_running')
    return State(memory, int(files), int(value('vipllava_late_compilations_total')), int(running))


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children = [
        int(child)
        for file in Path(f'/proc/{pid}/task').glob('*/children')
        for child in file.read_text().split()
    ]
    return [pid, *(one for child in children for one in family(child))]


def resident(pid: int) -> int:
    """The memory of a process in bytes."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


if __name__ == '__main__':
    sys.exit(main())
