"""The devices are tested in another process; wrong results, slow devices and no answers are reported."""

import pytest

from vipllava_jax.doctor import hardware
from vipllava_jax.doctor.check import NoAnswer
from vipllava_jax.doctor.hardware import check_devices

LISTED = {'platform': 'gpu', 'kinds': ['NVIDIA H100'] * 3, 'memory': [64 << 30] * 3, 'total': 3}
GOOD = {'right': True, 'kind': 'NVIDIA H100', 'dtype': 'bfloat16', 'flop': 7e14, 'bandwidth': 2.9e12}
SUM = {'right': True, 'devices': 3, 'bytes': 4 << 20, 'seconds': 1e-4}


class Answers:
    """A probe with given answers; a string is the message of a NoAnswer."""

    def __init__(self, *answers):
        self.answers = iter(answers)

    def __call__(self, name, environment=None):
        assert environment['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def answer(self, seconds):
        answer = next(self.answers)
        if isinstance(answer, str):
            raise NoAnswer(answer)
        return answer


def checks(monkeypatch, *answers):
    monkeypatch.setattr(hardware, 'Probe', Answers(*answers))
    return [*check_devices(20)]


def test_good_devices_are_ok(monkeypatch):
    listed, *tests, total = checks(monkeypatch, LISTED, GOOD, GOOD, GOOD, SUM)
    assert {check.status for check in (listed, *tests, total)} == {'ok'}
    assert '3 x NVIDIA H100, of which jax can use 64.00 GiB each' in listed.found
    assert [check.name for check in tests] == ['gpu 0', 'gpu 1', 'gpu 2']
    assert tests[0].found == 'bfloat16 product 700 TFLOP/s, copy 2,900 GB/s'
    assert total.found == '3 devices, 4.0 MiB of each in 0.10 ms, 41.9 GB/s'


def test_a_device_with_wrong_results_is_not_to_be_used(monkeypatch):
    found = checks(monkeypatch, LISTED, GOOD, {**GOOD, 'right': False}, GOOD, {**SUM, 'right': False})
    assert [check.status for check in found] == ['ok', 'ok', 'FAIL', 'ok', 'FAIL']
    assert 'do not use this device' in found[2].advice


def test_a_device_that_is_slower_than_the_others_is_reported(monkeypatch):
    found = checks(monkeypatch, LISTED, GOOD, GOOD, {**GOOD, 'flop': 3e14}, SUM)
    assert [check.status for check in found] == ['ok', 'ok', 'ok', 'FAIL', 'ok']
    assert 'heat' in found[3].advice


def test_the_cores_of_a_cpu_are_shared_and_so_not_compared(monkeypatch):
    listed = {**LISTED, 'platform': 'cpu', 'kinds': ['cpu', 'cpu']}
    found = checks(monkeypatch, listed, {**GOOD, 'kind': 'cpu'}, {**GOOD, 'kind': 'cpu', 'flop': 1.0}, SUM)
    assert {check.status for check in found} == {'ok'}


def test_what_does_not_answer_ends_the_checks_with_advice(monkeypatch):
    (found,) = checks(monkeypatch, 'no answer within 20 s')
    assert (found.status, 'another program' in found.advice) == ('FAIL', True)
    found = checks(monkeypatch, LISTED, GOOD, 'the check was ended by SIGSEGV')
    assert [check.status for check in found] == ['ok', 'ok', 'FAIL']
    found = checks(monkeypatch, LISTED, GOOD, GOOD, GOOD, 'no answer within 20 s')
    assert 'NCCL_DEBUG' in found[-1].advice


@pytest.mark.parametrize('platforms', ['cuda', ''])
def test_no_devices_say_what_to_install_or_unset(monkeypatch, platforms):
    monkeypatch.setenv('JAX_PLATFORMS', platforms)
    (found,) = checks(monkeypatch, {'error': "Unable to initialize backend 'cuda'", 'code': None})
    assert "Unable to initialize backend 'cuda'" in found.found
    assert ("JAX_PLATFORMS is 'cuda': unset it" in found.advice) == bool(platforms)
    (found,) = checks(monkeypatch, {'error': 'AssertionError', 'code': None})
    assert found.found == 'jax finds no device'


def test_a_single_device_has_nothing_to_add(monkeypatch):
    found = checks(monkeypatch, {**LISTED, 'kinds': ['NVIDIA H100'], 'memory': [None], 'total': 8}, GOOD)
    assert [check.status for check in found] == ['ok', 'ok', '--']
    assert found[0].found == 'NVIDIA H100; 8 with those of other hosts'


def test_the_devices_of_this_process_pass_the_self_test(monkeypatch):
    import jax

    from vipllava_jax.doctor import self_test

    monkeypatch.setattr(self_test, 'SECONDS', 0.01)
    assert self_test.list_devices()['kinds'] == [device.device_kind for device in jax.devices()]
    assert self_test.test_device(1)['right']
    total = self_test.add_over_devices(self_test.all_devices())
    assert (total['right'], total['devices']) == (True, len(jax.devices()))
