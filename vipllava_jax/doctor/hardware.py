"""Checks of the devices, which run in another process: a driver may block or crash."""

import os
from collections.abc import Iterator
from statistics import median
from typing import Any

from vipllava_jax.device_kinds import gib
from vipllava_jax.doctor.check import OK, Check, NoAnswer, Probe, counted, failed, ok, skipped
from vipllava_jax.doctor.software import INSTALL_CUDA
from vipllava_jax.messages import brief

SLOW = 0.7  # of the median of the devices: a slower one is reported
ENVIRONMENT = {
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # or jax would take most of a GPU's memory for the test
    'JAX_ENABLE_COMPILATION_CACHE': 'false',  # another check covers its folder
}
BUSY = (
    'another program may hold the devices; on a TPU slice of several hosts, run the command on all hosts at '
    'the same time'
)


def check_devices(seconds: float) -> Iterator[Check]:
    """The devices that jax finds, a test of each, and a sum over all; each has `seconds` to answer."""
    with Probe('devices', environment=ENVIRONMENT) as probe:
        try:
            found = probe.answer(seconds)
        except NoAnswer as error:
            yield failed('devices', f'jax does not list the devices: {error}', BUSY)
            return
        if 'error' in found:
            # jax asserts, without a message, that a platform that was asked for exists
            reason = found['error'].removeprefix('AssertionError')
            yield failed('devices', f'jax finds no device: {reason}'.rstrip(': '), _advice_without_devices())
            return
        yield describe_devices(found)
        names = [f'{found["platform"]} {i}' for i in range(len(found['kinds']))]
        yield from _tests(probe, names, seconds)


def describe_devices(found: dict[str, Any]) -> Check:
    """The kinds and memory of the local devices."""
    memory = min((size for size in found['memory'] if size), default=None)
    text = ', '.join(counted(found['kinds']))
    if memory:
        text += f', of which jax can use {gib(memory)}' + (' each' if len(found['kinds']) > 1 else '')
    if found['total'] > len(found['kinds']):
        text += f'; {found["total"]} with those of other hosts'
    return ok('devices', text, **found)


def _advice_without_devices() -> str:
    if platforms := os.environ.get('JAX_PLATFORMS'):
        return f'JAX_PLATFORMS is {brief(platforms, 40)}: unset it to use what there is, or {INSTALL_CUDA}'
    return 'see the checks above; pip install --upgrade jax'


def _tests(probe: Probe, names: list[str], seconds: float) -> Iterator[Check]:
    """The tests of each device, and the sum over all of them."""
    rates: list[float] = []
    for name in names:
        answer = _answer(probe, seconds)
        check = _tested(name, answer, rates)
        if check.status == OK and answer['kind'] != 'cpu':  # devices of a CPU share its cores
            rates.append(answer['flop'])
        yield check
        if 'error' in answer:
            return
    if len(names) == 1:
        yield skipped('all-reduce', 'there is one device')
        return
    yield check_sum('all-reduce', _answer(probe, seconds))


def _answer(probe: Probe, seconds: float) -> dict[str, Any]:
    try:
        return probe.answer(seconds)
    except NoAnswer as error:
        return {'error': str(error)}


def _tested(name: str, answer: dict[str, Any], rates: list[float]) -> Check:
    if 'error' in answer:
        return failed(name, answer['error'], f'{BUSY}; a device that keeps failing may be broken')
    text = f'{answer["dtype"]} product {tera(answer["flop"])}, copy {answer["bandwidth"] / 1e9:,.0f} GB/s'
    if not answer['right']:
        return failed(name, f'{text}, but wrong results', 'do not use this device: its numbers are wrong')
    if rates and answer['flop'] < SLOW * median(rates):
        advice = 'look for another program on this device, for heat, or for a lower clock (nvidia-smi -q)'
        return failed(name, f'{text}, slower than the others ({tera(median(rates))})', advice)
    return ok(name, text, **answer)


def check_sum(name: str, answer: dict[str, Any]) -> Check:
    """The result of a sum over devices."""
    if 'error' in answer:
        advice = (
            'the devices do not reach each other: NCCL_DEBUG=INFO says more; in a container, give it more '
            'shared memory (--shm-size=16g) or set NCCL_P2P_DISABLE=1'
        )
        return failed(name, answer['error'], advice)
    n, size, seconds = answer['devices'], answer['bytes'], answer['seconds']
    text = f'{n} devices, {gib(size)} of each in {seconds * 1e3:.2f} ms, {size / seconds / 1e9:,.1f} GB/s'
    if not answer['right']:
        return failed(name, f'{text}, but wrong results', 'do not use these devices together')
    return ok(name, text, **answer)


def tera(flop: float) -> str:
    """Operations per second, with three digits."""
    return f'{flop / 1e12:.3g} TFLOP/s'
