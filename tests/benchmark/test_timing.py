"""Sides alternate, warm-ups are not counted, and a failing side does not stop the others."""

import pytest

from vipllava_jax import ceilings
from vipllava_jax.benchmark.timing import NO_MEMORY, OURS, Line, measure_line


def side(calls, name, fails_at=None, error=None):
    """A side that records its calls; its n-th call reports n seconds."""

    def run():
        calls.append(name)
        if calls.count(name) == fails_at:
            raise error
        return float(calls.count(name))

    return lambda: run


def test_sides_take_turns_after_their_warm_ups():
    calls = []
    line = Line('decode', '1', 1, {OURS: side(calls, 'a'), 'b': side(calls, 'b')})
    result = measure_line(line, 4)
    assert calls == [*'aabb', *'abababab']
    ours = result.sides[OURS]
    assert ours.samples == [3, 4, 5, 6]
    assert (ours.median, ours.quartiles) == (4.5, (3.75, 5.25))


def test_a_line_may_limit_its_repeats_and_skip_the_warm_up():
    calls = []
    result = measure_line(
        Line('compile, cold', '1', 1, {OURS: side(calls, 'a')}, max_repeats=1, warm_up=False), 10
    )
    assert result.sides[OURS].samples == [1]
    assert result.sides[OURS].quartiles is None


@pytest.mark.parametrize(
    ('error', 'fault'),
    [
        (RuntimeError('RESOURCE_EXHAUSTED: Out of memory'), NO_MEMORY),
        (MemoryError(), NO_MEMORY),
        (RuntimeError('a\nb'), 'RuntimeError: a b'),
    ],
)
@pytest.mark.parametrize('at', [1, 5])
def test_the_fault_of_a_failing_side_is_recorded(error, fault, at):
    calls = []
    sides = {OURS: side(calls, 'a', at, error), 'b': side(calls, 'b')}
    result = measure_line(Line('decode', '1', 1, sides), 4)
    assert result.sides[OURS].fault == fault
    assert len(result.sides[OURS].samples) == max(at - 3, 0)
    assert len(result.sides['b'].samples) == 4


def test_an_interruption_is_not_a_fault():
    with pytest.raises(KeyboardInterrupt):
        measure_line(Line('decode', '1', 1, {OURS: side([], 'a', 4, KeyboardInterrupt())}), 4)


def test_the_peak_of_host_memory_is_measured():
    def run():
        import time

        held = bytearray(b'x' * 2**26)
        time.sleep(0.05)
        return float(len(held))

    result = measure_line(Line('load', 'x', 0, {OURS: lambda: run}, memory=True), 3)
    assert result.sides[OURS].memory >= 2**25


@pytest.mark.slow
def test_the_measured_rates_are_plausible():
    rates = ceilings.measure_ceilings('float32', repeats=1)
    assert 1e8 < rates.bandwidth < 1e14
    assert 1e8 < rates.matmul < 1e16
