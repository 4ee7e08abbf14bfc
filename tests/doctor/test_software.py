"""Versions must fit each other, and GPUs and TPUs need their drivers and libraries."""

from importlib import metadata

import pytest

from vipllava_jax.doctor import software
from vipllava_jax.doctor.software import check_accelerators, check_versions


@pytest.fixture
def computer(monkeypatch):
    """A computer with the given packages, GPUs as nvidia-smi lists them, and maybe a TPU."""

    def set_up(packages, gpus=None, tpu=False):
        def version(name):
            try:
                return packages[name]
            except KeyError:
                raise metadata.PackageNotFoundError(name) from None

        monkeypatch.setattr(software.metadata, 'version', version)
        monkeypatch.setattr(software, 'output_of', lambda *_: gpus)
        monkeypatch.setattr(software, '_has_tpu', lambda: tpu)
        monkeypatch.setattr(software.ctypes.util, 'find_library', lambda name: None)
        return [*check_accelerators()]

    return set_up


def test_the_installed_versions_fit():
    found = check_versions()
    assert found.status == 'ok'
    assert f'jax {metadata.version("jax")}' in found.found


def test_a_plugin_of_another_release_is_reported(computer):
    computer({'jax': '0.10.2', 'jaxlib': '0.10.2', 'jax-cuda13-plugin': '0.10.1'})
    found = check_versions()
    assert (found.status, "pip install --upgrade 'jax[cuda13]'" in found.advice) == ('FAIL', True)
    computer({'jax': '0.10.2', 'jaxlib': '0.10.2', 'jax-cuda13-plugin': '0.10.2.1'})
    assert check_versions().status == 'ok'
    computer({'jax': '0.10.2'})
    assert check_versions().status == 'FAIL'


def test_a_gpu_needs_a_plugin(computer):
    driver, plugin = computer({}, gpus='NVIDIA H100 80GB HBM3, 580.65.06\n')
    assert (driver.status, driver.found) == ('ok', '580.65.06')
    assert (plugin.status, 'vipllava-jax[cuda13]' in plugin.advice) == ('FAIL', True)


def test_a_plugin_needs_a_driver_and_libraries(computer):
    found = {check.name: check for check in computer({'jax-cuda12-plugin': '0.10.2'})}
    assert {check.status for check in found.values()} == {'FAIL'}
    assert 'install the NVIDIA driver' in found['GPU driver'].advice
    assert 'needed for several GPUs' in found['NCCL'].found
    packages = {'jax-cuda12-plugin': '0.10.2', 'nvidia-nccl-cu12': '2.28', 'nvidia-cudnn-cu12': '9.1'}
    found = computer(packages, gpus='NVIDIA L4, 570.1\nNVIDIA L4, 570.1\n')
    assert [(check.name, check.status) for check in found] == [
        ('GPU driver', 'ok'), ('cuDNN', 'ok'), ('NCCL', 'ok'),
    ]  # fmt: skip


def test_a_tpu_needs_libtpu(computer):
    (found,) = computer({}, tpu=True)
    assert (found.status, found.advice) == ('FAIL', "pip install 'vipllava-jax[tpu]'")
    assert computer({'libtpu': '0.1'}, tpu=True) == []


def test_a_computer_without_accelerators_is_no_fault(computer):
    (found,) = computer({})
    assert found.status == '--'
