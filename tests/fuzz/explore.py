"""Inputs that hypothesis makes, tried until the time is up; the faults that they find."""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.fuzz.inputs import Files
from tests.fuzz.runner import Runner, save

DISTINCT = 20  # faults after which a target is left


class Fault(NamedTuple):
    """What was wrong, and the folder that `replay` takes."""

    told: str
    kept: Path

    def __str__(self) -> str:
        return f'{self.told}\n  python -m tests.fuzz replay {self.kept}'


class Enough(BaseException):
    """Ends hypothesis, which would take an Exception for a failed test."""


def explore(
    runner: Runner,
    *,
    seconds: float,
    keep: Path,
    inputs: int = 1_000_000,
    seed: int | None = None,
    known: dict[str, Fault] | None = None,
    told: Callable[[Fault | None], None] = lambda fault: None,
) -> dict[str, Fault]:
    """Tries so many inputs of a runner's target -> its faults by kind, each with the first input that has it.

    Without a seed the inputs are always the same. `told` is called after each, with the fault if it is new.
    """
    faults = {} if known is None else known

    def tried(files: Files) -> None:
        what = runner.fault(files)
        new = bool(what) and kind(what) not in faults
        if new:
            faults[kind(what)] = Fault(f'{runner.name}: {what}', save(files, runner.name, what, keep))
        told(faults[kind(what)] if new else None)

    def attempt(files: Files) -> None:
        if time.monotonic() > end or len(faults) >= DISTINCT:
            raise Enough
        tried(files)

    tried({})  # the valid files; the time to import and compile what they need does not count
    end = time.monotonic() + seconds
    test = given(runner.target.inputs(runner.valid))(attempt)
    test = settings(
        max_examples=inputs,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # a shrunk input would be found by trying hundreds, each of which may hang
        suppress_health_check=list(HealthCheck),
    )(test)
    with contextlib.suppress(Enough):
        (test if seed is None else seeded(seed)(test))()
    return faults


def kind(told: str) -> str:
    """A fault without its particulars: an exception's type and place, or the first words."""
    found = re.match(r'\w+ at [^:]+:\d+', told)
    return found[0] if found else re.sub(r'\d+', 'N', told)[:44]
