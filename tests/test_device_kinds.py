"""The memory of devices by their kind, and as text."""

from types import SimpleNamespace

import jax
import pytest

from vipllava_jax.device_kinds import FRACTION, fleet_of, gib, memory_of, memory_of_kind, parse_memory

GIB = 2**30


@pytest.fixture(autouse=True)
def no_fraction(monkeypatch):
    monkeypatch.delenv(FRACTION, raising=False)


@pytest.mark.parametrize(
    ('kind', 'size', 'platform'),
    [
        ('TPU v5 lite', 15.75, 'tpu'),
        ('v5e', 15.75, 'tpu'),
        ('TPU v5', 95.74, 'tpu'),
        ('TPU v6 lite', 31.25, 'tpu'),
        ('NVIDIA H100 80GB HBM3', 79.1 * 0.75, 'gpu'),
        ('NVIDIA H200', 139.8 * 0.75, 'gpu'),
        ('NVIDIA GH200 480GB', 94.5 * 0.75, 'gpu'),
        ('NVIDIA A100-SXM4-40GB', 39.4 * 0.75, 'gpu'),
        ('NVIDIA A100-SXM4-80GB', 79.2 * 0.75, 'gpu'),
        ('NVIDIA L4', 22 * 0.75, 'gpu'),
        ('NVIDIA L40S', 44.4 * 0.75, 'gpu'),
    ],
)
def test_the_memory_of_a_kind_is_known_by_its_name(kind, size, platform):
    found = memory_of_kind(kind)
    assert (found.bytes, found.platform) == (int(size * GIB), platform)


@pytest.mark.parametrize('kind', ['', 'cpu', 'TPU v99', 'H1000', 'NVIDIA XL4'])
def test_an_unknown_kind_has_no_memory(kind):
    assert memory_of_kind(kind) is None


def test_the_fraction_of_a_gpu_is_the_one_of_the_environment(monkeypatch):
    monkeypatch.setenv(FRACTION, '0.5')
    assert memory_of_kind('H100').bytes == int(79.1 * 0.5 * GIB)
    for invalid in ('x', '7', ''):
        monkeypatch.setenv(FRACTION, invalid)
        assert memory_of_kind('H100').bytes == int(79.1 * 0.75 * GIB)


@pytest.mark.parametrize(
    ('text', 'size'),
    [('16GiB', 16 * GIB), ('24GB', 24e9), ('1.5 gib', 1.5 * GIB), ('512MiB', GIB / 2), ('v5e', 15.75 * GIB)],
)
def test_memory_is_a_size_or_a_kind(text, size):
    assert parse_memory(text).bytes == size


@pytest.mark.parametrize(
    'text', ['', '0GiB', '16', 'GiB', '-1GB', '1e9GB', 'nan GB', 'x' * 10_000, '\x1b[31m']
)
def test_other_text_is_an_error_of_one_line(text):
    with pytest.raises(ValueError, match='expected a size such as 16GiB') as error:
        parse_memory(text)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def device(kind, process=0, stats=None, platform='gpu'):
    def memory_stats():
        if isinstance(stats, Exception):
            raise stats
        return stats

    return SimpleNamespace(
        device_kind=kind, process_index=process, memory_stats=memory_stats, platform=platform
    )


def test_a_device_reports_its_memory_or_has_that_of_its_kind():
    assert memory_of([device('NVIDIA L4', stats={'bytes_limit': 7}), device('NVIDIA L4')]) == 7
    assert memory_of([device('NVIDIA L4', stats=RuntimeError('no'))]) == 22 * 0.75 * GIB
    assert memory_of([device('unknown'), device('NVIDIA L4')]) is None


def test_all_processes_find_the_same_memory():
    of_two = [device('TPU v5 lite', 0, {'bytes_limit': 7}), device('TPU v5 lite', 1, RuntimeError('remote'))]
    assert memory_of(of_two) == 15.75 * GIB


def test_cpu_devices_share_the_memory_of_the_host():
    every = jax.devices()
    assert fleet_of().count == len(every) == fleet_of().per_host
    assert fleet_of().memory * len(every) <= fleet_of(every[:1]).memory * len(every)
    assert fleet_of(every[:2]).count == 2


def test_sizes_have_few_digits():
    assert [gib(n) for n in (0, 2**20, GIB, 99.4 * GIB, 2000 * GIB)] == [
        '0.0 MiB', '1.0 MiB', '1.00 GiB', '99.40 GiB', '2,000 GiB',
    ]  # fmt: skip
