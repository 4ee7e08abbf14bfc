"""Tries a fixed sequence of inputs of every target, as many as there is time for."""

import pytest

from tests.fuzz.explore import explore
from tests.fuzz.runner import Runner
from tests.fuzz.targets import TARGETS

SECONDS, INPUTS = 3, 400  # per target, without its start; about a minute in total


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize('name', TARGETS)
def test_no_input_does_harm(name, tmp_path):
    runner = Runner(name, TARGETS[name], tmp_path)
    try:
        faults = explore(runner, seconds=SECONDS, inputs=INPUTS, keep=tmp_path / 'failures')
    finally:
        runner.close()
    assert not faults, '\n'.join(map(str, faults.values()))
