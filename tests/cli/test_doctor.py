"""`vipllava doctor` as a user runs it: one line per check, and advice where one fails."""

import json
import os
import subprocess
import sys

import pytest

from vipllava_jax.cli import doctor as command
from vipllava_jax.doctor import hardware, network, software
from vipllava_jax.doctor.check import failed, ok, skipped


def run(*args, **environment):
    """Runs the command in a separate process, on two devices."""
    flags = '--xla_force_host_platform_device_count=2'
    return subprocess.run(
        [sys.executable, '-m', 'vipllava_jax', *map(str, args)],
        env={**os.environ, 'XLA_FLAGS': flags, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def healthy(monkeypatch):
    """Replaces the checks that take seconds."""
    monkeypatch.setattr(software, 'check_accelerators', lambda: [])
    monkeypatch.setattr(hardware, 'check_devices', lambda seconds: [ok('devices', '2 x cpu')])
    monkeypatch.setattr(network, 'check_coordinator', lambda *_: skipped('coordinator', 'none'))


def test_a_healthy_computer_has_exit_code_0(tmp_path):
    secret = 'hf_neverprintthis'
    ran = run(
        '--compilation-cache',
        tmp_path / 'programs',
        'doctor',
        '--model',
        'demo',
        '--output',
        tmp_path,
        HF_TOKEN=secret,
    )
    assert (ran.returncode, ran.stderr) == (0, ''), ran.stdout
    for name in (
        'versions',
        'devices',
        'cpu 0',
        'cpu 1',
        'all-reduce',
        'compiled programs',
        'model',
        'output',
    ):
        assert f'ok    {name} ' in ran.stdout
    assert '--    coordinator' in ran.stdout
    assert secret not in ran.stdout
    assert not [*tmp_path.iterdir()]


def test_broken_settings_are_reported_each_with_advice(tmp_path):
    args = ('--model', tmp_path / 'none', '--output', '/dev/full', '--coordinator', 'x', '--json')
    ran = run('--compilation-cache', '/proc/self', 'doctor', *args, JAX_PLATFORMS='cuda')
    assert (ran.returncode, ran.stderr) == (1, '')
    found = json.loads(ran.stdout)
    assert not found['ok']
    wrong = {check['name']: check for check in found['checks'] if check['status'] == 'FAIL'}
    assert {'devices', 'compiled programs', 'model', 'output', 'coordinator'} <= {*wrong}
    assert all(check['advice'] and check['found'].isprintable() for check in wrong.values())
    assert 'JAX_PLATFORMS' in wrong['devices']['advice']


def test_a_failed_check_shows_what_to_do(vipllava, monkeypatch, healthy):
    problem = failed('devices', 'no answer within 120 s', 'look for another program ' * 6)
    monkeypatch.setattr(hardware, 'check_devices', lambda seconds: [problem])
    ran = vipllava('doctor')
    assert (ran.code, ran.err) == (1, '')
    assert 'FAIL  devices           no answer within 120 s' in ran.out
    assert '→ look for another program' in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_without_a_cache_the_check_is_skipped(vipllava, monkeypatch, healthy):
    monkeypatch.delenv(command.compilation.FOLDER, raising=False)
    ran = vipllava('doctor')
    assert ran.code == 0, ran.out
    assert '--    compiled programs are not kept' in ran.out


def test_a_name_on_the_hub_is_not_downloaded(vipllava, healthy):
    ran = vipllava('doctor', '--model', 'llava-hf/vip-llava-7b-hf')
    assert ran.code == 1
    assert 'llava-hf/vip-llava-7b-hf: no such folder' in ran.out


def test_time_limits_hold(tmp_path):
    ran = run('doctor', '--time-limit', 1, '--json')
    assert ran.returncode in (0, 1)
    assert json.loads(ran.stdout)['checks']
