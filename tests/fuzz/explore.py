"""Inputs that hypothesis makes, tried until time or their number is up; the faults that they find."""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.fuzz.runner import Runner, save
from tests.fuzz.targets import Files

DISTINCT = 20  # faults of a target after which it is left


class Fault(NamedTuple):
    told: str
    kept: Path  # replay takes it

    def __str__(self) -> str:
        return f'{self.told}\n  python -m tests.fuzz replay {self.kept}'


class Enough(BaseException):
    """Ends hypothesis, which takes an Exception for a test that failed."""


def explore(
    runner: Runner,
    *,
    seconds: float,
    examples: int,
    keep: Path,
    seed: int | None = None,
    known: dict[str, Fault] | None = None,
    told: Callable[[int, Fault | None], None] = lambda count, fault: None,
) -> dict[str, Fault]:
    """Tries inputs of a runner's target -> the faults of different kinds, each with its first input.

    Without a seed the inputs are always the same. `told` is called after each, with their number so far.
    """
    faults = {} if known is None else known
    count = 0

    def tried(files: Files) -> None:
        nonlocal count
        count += 1
        fault = None
        if (what := runner.fault(files)) and (kind := kind_of(what)) not in faults:
            fault = faults[kind] = Fault(f'{runner.name}: {what}', save(files, runner.name, what, keep))
        told(count, fault)

    tried({})  # the valid files alone; to import and compile what they need is no part of the time
    end = time.monotonic() + seconds

    def attempt(files: Files) -> None:
        if time.monotonic() > end or count >= examples or len(faults) >= DISTINCT:
            raise Enough
        tried(files)

    attempt.__qualname__ = f'attempt.{runner.name}'
    test = given(runner.target.inputs(runner.valid))(attempt)
    test = settings(
        max_examples=1_000_000,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(test)
    with contextlib.suppress(Enough):
        (test if seed is None else seeded(seed)(test))()
    return faults


def kind_of(told: str) -> str:
    """A fault without its particulars: the type of an exception and its place, or the first words."""
    found = re.match(r'\w+ at [^:]+:\d+', told)
    return found[0] if found else re.sub(r'\d+', 'N', told)[:44]
