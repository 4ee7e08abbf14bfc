"""Runs the fuzzer: `python -m tests.fuzz --minutes 60 [TARGET …]`; `replay FOLDER` tries an input again."""

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.explore import Fault, explore
from tests.fuzz.runner import Runner, load_saved
from tests.fuzz.targets import TARGETS

TURN = 60.0  # seconds per turn of a target


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.fuzz', description=__doc__)
    parser.add_argument('targets', nargs='*', metavar='TARGET', help=f'{", ".join(TARGETS)}; default: all')
    parser.add_argument('--minutes', type=float, default=10, help='for all targets together; default: 10')
    parser.add_argument('--seed', type=int, default=secrets.randbits(32), help='default: a random seed')
    parser.add_argument(
        '--keep',
        metavar='FOLDER',
        type=Path,
        default=Path('fuzz-failures'),
        help='where to save failing inputs',
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='fuzz-') as place:
        if options.targets[:1] == ['replay']:
            return replay([Path(name) for name in options.targets[1:]], Path(place))
        if unknown := set(options.targets) - {*TARGETS}:
            parser.error(f'unknown target {", ".join(unknown)}: choose from {", ".join(TARGETS)}')
        runners = [Runner(name, TARGETS[name], Path(place)) for name in options.targets or TARGETS]
        return fuzz(runners, 60 * options.minutes, options.seed, options.keep)


def replay(folders: list[Path], place: Path) -> int:
    """Tries failing inputs again -> 1 if one still fails."""
    code = 0
    for folder in folders:
        name, files = load_saved(folder)
        runner = Runner(name, TARGETS[name], place)
        description = runner.fault(files)
        runner.close()
        print(f'{folder}: {description or "no fault"}')
        code |= bool(description)
    return code


def fuzz(runners: list[Runner], seconds: float, seed: int, keep: Path) -> int:
    """Lets the targets take turns until the time is up -> 1 if a fault was found."""
    counts = {runner.name: Count(runner.name) for runner in runners}
    end, turn = time.monotonic() + seconds, min(TURN, seconds / len(runners))
    print(f'seed {seed}', file=sys.stderr)
    try:
        while time.monotonic() < end:
            for runner in runners:
                count = counts[runner.name]
                explore(runner, seconds=turn, keep=keep, seed=seed, known=count.faults, on_input=count)
                runner.stop()
            seed += 1
    except KeyboardInterrupt:
        pass
    finally:
        for runner in runners:
            runner.close()
    print(*('', *counts.values()), sep='\n', file=sys.stderr)
    return int(any(count.faults for count in counts.values()))


class Count:
    """Counts a target's inputs and faults, and shows both on stderr."""

    def __init__(self, name: str):
        self.name, self.inputs = name, 0
        self.faults: dict[str, Fault] = {}

    def __call__(self, fault: Fault | None) -> None:
        self.inputs += 1
        if fault:
            print(f'\r\x1b[K{fault}', flush=True)
        print(f'\r\x1b[K{self}', end='', file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return f'{self.name}: {self.inputs} inputs, {len(self.faults)} faults'


if __name__ == '__main__':
    sys.exit(main())
