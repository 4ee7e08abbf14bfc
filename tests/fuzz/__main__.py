"""Fuzzes by hand: `python -m tests.fuzz --minutes 60 [TARGET …]`, or `python -m tests.fuzz replay FOLDER`."""

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.explore import Fault, explore
from tests.fuzz.runner import Runner, saved
from tests.fuzz.targets import TARGETS

TURN = 60.0  # seconds that a target has before the next one's turn


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.fuzz', description=__doc__)
    parser.add_argument(
        'targets', nargs='*', metavar='TARGET', help=f'of {", ".join(TARGETS)}; all by default'
    )
    parser.add_argument('--minutes', type=float, default=10, help='in all (10)')
    parser.add_argument('--seed', type=int, default=None, help='a random one by default')
    parser.add_argument(
        '--keep', type=Path, default=Path('fuzz-failures'), help='where inputs with faults are kept'
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='fuzz-') as place:
        if options.targets[:1] == ['replay']:
            return replay([Path(name) for name in options.targets[1:]], Path(place))
        if unknown := set(options.targets) - {*TARGETS}:
            parser.error(f'no target {", ".join(unknown)}: there are {", ".join(TARGETS)}')
        return fuzz(
            options.targets or [*TARGETS], 60 * options.minutes, options.seed, options.keep, Path(place)
        )


def replay(folders: list[Path], place: Path) -> int:
    """Tries inputs again that were kept."""
    bad = 0
    for folder in folders:
        name, files = saved(folder)
        runner = Runner(name, TARGETS[name], place)
        told = runner.fault(files)
        runner.close()
        bad += bool(told)
        print(f'{folder}: {told or "all is well"}')
    return int(bad > 0)


def fuzz(names: list[str], seconds: float, seed: int | None, keep: Path, place: Path) -> int:
    """Lets the targets take turns until the time is up."""
    seed = secrets.randbits(32) if seed is None else seed
    end, turn = time.monotonic() + seconds, min(TURN, seconds / len(names))
    runners: dict[str, Runner] = {}
    faults: dict[str, dict[str, Fault]] = {name: {} for name in names}
    counts = dict.fromkeys(names, 0)
    try:
        while (left := end - time.monotonic()) > 0:
            for name in names:
                runner = runners.setdefault(name, None) or Runner(name, TARGETS[name], place)  # type: ignore[arg-type]
                runners[name] = runner
                began = time.monotonic()

                def told(count: int, fault: Fault | None, name: str = name, began: float = began) -> None:
                    if fault:
                        print(f'\r\x1b[K{fault}', flush=True)
                    rate = count / max(time.monotonic() - began, 1e-9)
                    line = f'\r\x1b[K{name}: {counts[name] + count} inputs, {rate:.0f} per second'
                    print(f'{line}, {len(faults[name])} faults', end='', file=sys.stderr, flush=True)
                    told.count = count  # type: ignore[attr-defined]

                explore(
                    runner,
                    seconds=min(turn, left),
                    examples=10**9,
                    keep=keep,
                    seed=seed,
                    known=faults[name],
                    told=told,
                )
                counts[name] += getattr(told, 'count', 0)
                runner.stop()
                seed += 1
    except KeyboardInterrupt:
        pass
    finally:
        for runner in runners.values():
            if runner:
                runner.close()
    print(file=sys.stderr)
    for name in names:
        print(f'{name}: {counts[name]} inputs, {len(faults[name])} faults', file=sys.stderr)
    return int(any(faults.values()))


if __name__ == '__main__':
    sys.exit(main())
