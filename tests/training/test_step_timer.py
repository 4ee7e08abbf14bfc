"""A step's time is measured from one completion to the next, however late the host waits for it."""

import threading

import pytest

from vipllava_jax.training.step_timer import StepTimer, throughput


class Device:
    """A fake device that completes steps on request, with a clock that only changes when it is set."""

    def __init__(self):
        self.now, self.events = 0.0, {}

    def begin(self, step):
        self.events[step] = threading.Event()
        return step

    def wait(self, step):
        assert self.events[step].wait(10)

    def complete(self, timed, step, at):
        self.now = at
        self.events[step].set()
        timed.completion.result(10)


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def timer(device):
    timer = StepTimer(lambda: device.now, device.wait)
    yield timer
    timer.close()


def test_a_busy_host_does_not_change_the_times(device, timer):
    steps = [timer.start(device.begin(n), 'shape') for n in range(3)]
    for n, at in enumerate((10.0, 11.0, 12.0)):
        device.complete(steps[n], n, at)
    device.now = 12.5  # only now does the host have time for all three
    assert [timer.seconds(step) for step in steps] == [10.0, 1.0, 1.0]


def test_a_program_is_compiled_once_per_shape(device, timer):
    shapes = ['a', 'a', 'b', 'a', 'b', 'c']
    steps = [timer.start(device.begin(n), shape) for n, shape in enumerate(shapes)]
    assert [step.compiled for step in steps] == [True, False, True, False, False, True]
    for event in device.events.values():
        event.set()


def test_pauses_between_steps_are_excluded(device, timer):
    first = timer.start(device.begin(1), 'shape')
    device.complete(first, 1, 2.0)
    assert timer.seconds(first) == 2.0
    device.now = 60.0  # held-out rows, a checkpoint
    timer.skip_pause()
    second = timer.start(device.begin(2), 'shape')
    device.complete(second, 2, 61.0)
    assert timer.seconds(second) == 1.0


def test_an_error_of_the_device_is_raised(device):
    def wait(_):
        raise RuntimeError('RESOURCE_EXHAUSTED')

    timer = StepTimer(lambda: 0.0, wait)
    with pytest.raises(RuntimeError, match='RESOURCE_EXHAUSTED'):
        timer.seconds(timer.start(1, 'shape'))
    timer.close()


def test_impossible_throughputs_are_left_out():
    assert throughput(2.0, 100, 4e12, 4e12) == {'tokens_per_second': 50.0, 'tflops': 2.0, 'mfu': 0.5}
    assert throughput(2.0, 100, 8e12, 4e12)['mfu'] == 1.0
    assert throughput(2.0, 100, 8.1e12, 4e12) == {'tokens_per_second': 50.0}
    assert throughput(2.0, 100, 4e12, None) == {'tokens_per_second': 50.0}
    assert throughput(0.0, 100, 4e12, 4e12) == {}
