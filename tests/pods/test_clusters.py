"""The address, count and index with which a process joins: from flags, variables or the cluster."""

import contextlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.processes import ROOT, free_port, run_processes
from vipllava_jax.clusters import find_place

UNSET = {'JAX_COORDINATOR_ADDRESS': '', 'JAX_NUM_PROCESSES': '', 'JAX_PROCESS_ID': ''}
GIVEN = {'coordinator': '10.0.0.1:8476', 'count': 4, 'index': 2}
VARIABLES = {
    'JAX_COORDINATOR_ADDRESS': 'host-0.jobs:8476',
    'JAX_NUM_PROCESSES': '4',
    'JAX_PROCESS_ID': '3',
}


def test_flags_take_precedence_over_variables():
    for given, variables, expected in (
        (GIVEN, {}, ('10.0.0.1:8476', 4, 2)),
        ({}, VARIABLES, ('host-0.jobs:8476', 4, 3)),
        ({'index': 0}, VARIABLES, ('host-0.jobs:8476', 4, 0)),
        ({'coordinator': '[fe80::1]:8476'}, VARIABLES, ('[fe80::1]:8476', 4, 3)),
    ):
        place = find_place('auto', given, variables, 1)
        assert (place.coordinator, place.count, place.index) == expected


def test_a_process_that_is_alone_does_not_join():
    assert find_place('auto', {}, {}, 1) is None
    assert find_place('off', GIVEN, VARIABLES, 1) is None
    single = {**GIVEN, 'count': 1, 'index': 0}
    assert find_place('auto', single, {}, 1) is None
    assert find_place('on', single, {}, 1).count == 1


@pytest.mark.parametrize(
    ('mode', 'given', 'variables', 'message'),
    [
        (
            'on',
            {},
            {},
            '--coordinator or JAX_COORDINATOR_ADDRESS, --process-count or JAX_NUM_PROCESSES, --pro',
        ),
        (
            'auto',
            {'count': 2},
            {},
            'give --coordinator or JAX_COORDINATOR_ADDRESS, --process-index or JAX_PROC',
        ),
        ('auto', {}, {'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'give --process-count or .* or --distributed off'),
        ('maybe', {}, {}, "distributed: 'maybe', expected auto, on, off"),
        ('on', {**GIVEN, 'index': 4}, {}, '--process-index or JAX_PROCESS_ID: 4, .* expected 0 to 3'),
        ('on', {**GIVEN, 'count': 0}, {}, '--process-count: 0, expected 1 or more'),
        (
            'on',
            {},
            {**VARIABLES, 'JAX_NUM_PROCESSES': 'x'},
            "JAX_NUM_PROCESSES: 'x', expected a",
        ),
        ('on', {}, {**VARIABLES, 'JAX_NUM_PROCESSES': '9' * 400}, 'JAX_NUM_PROCESSES: .*, expected a whole'),
        ('on', {}, {**VARIABLES, 'JAX_PROCESS_ID': '-1'}, "JAX_PROCESS_ID: '-1', expected a whole number"),
        ('on', {**GIVEN, 'coordinator': 'host'}, {}, "--coordinator: 'host', expected HOST:PORT"),
        ('on', {**GIVEN, 'coordinator': 'host:0'}, {}, 'expected HOST:PORT'),
        ('on', {**GIVEN, 'coordinator': 'host:70000'}, {}, 'expected HOST:PORT'),
        ('on', {**GIVEN, 'coordinator': 'a b\x1b[2J:80'}, {}, 'expected HOST:PORT'),
        ('on', {**GIVEN, 'coordinator': 'http://host:80'}, {}, 'expected HOST:PORT'),
        (
            'on',
            GIVEN,
            {'JAX_LOCAL_DEVICE_IDS': '0,x\x1b'},
            'JAX_LOCAL_DEVICE_IDS: .*, expected whole numbers',
        ),
    ],
)
def test_wrong_and_missing_values_are_named(mode, given, variables, message):
    with pytest.raises(ValueError, match=message) as error:
        find_place(mode, given, variables, 1)
    assert str(error.value).isprintable()


def test_without_variables_of_a_cluster_jax_is_not_imported():
    script = """
import sys
from vipllava_jax import clusters, pods
clusters.find_spec = lambda name: None  # with libtpu, which the gates need, jax is asked
print(pods.join(), 'jax' in sys.modules)
"""
    (ran,) = run_processes(script, 1, env={**UNSET, 'TPU_LIBRARY_PATH': ''})
    assert (ran.code, ran.out, ran.err) == (0, 'None False\n', '')


PRINTS = """
import os, sys
import jax
if 'METADATA' in os.environ:
    del os.environ['TPU_SKIP_MDS_QUERY']  # jax sets it where there is no TPU
from vipllava_jax import pods
place = pods.join('auto', timeout=60)
print(pods.process_index(), pods.process_count(), place and (place.found_by, place.local_devices))
if place:
    print(pods.gather(place.index))
pods.leave()
"""


def test_slurm_is_found_by_its_variables():
    slurm = {
        **UNSET,
        'JAX_COORDINATOR_PORT': str(free_port()),
        'SLURM_JOB_ID': '4711',
        'SLURM_STEP_NODELIST': 'localhost,node[2-3]',
        'SLURM_NTASKS': '2',
    }
    each = [{**slurm, 'SLURM_PROCID': str(n), 'SLURM_LOCALID': '0'} for n in range(2)]
    for n, ran in enumerate(run_processes(PRINTS, env=each)):
        assert (ran.code, ran.out) == (0, f"{n} 2 ('Slurm', [0])\n[0, 1]\n"), ran.err


def test_chosen_devices_take_precedence_over_those_of_slurm(monkeypatch):
    for name, value in {
        **{'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'a[1-2]', 'SLURM_NTASKS': '8'},
        **{'SLURM_PROCID': '6', 'SLURM_LOCALID': '2'},
    }.items():
        monkeypatch.setenv(name, value)
    place = find_place('auto', {}, {}, 1)
    assert (place.coordinator, place.count, place.index) == ('a1:61441', 8, 6)
    assert place.local_devices == [2]
    monkeypatch.setenv('JAX_LOCAL_DEVICE_IDS', '0,1')
    assert find_place('auto', {}, {}, 1).local_devices is None


def test_a_slurm_job_of_one_task_does_not_join():
    alone = {**UNSET, 'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'a', 'SLURM_LOCALID': '0'}
    (ran,) = run_processes(PRINTS, 1, env={**alone, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'})
    assert (ran.code, ran.out, ran.err) == (0, '0 1 None\n', '')


def test_broken_variables_of_a_cluster_are_an_error_in_one_line(vipllava, data, monkeypatch):
    for name in ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'):
        monkeypatch.setenv(name, 'x')
    ran = vipllava('eval', '--model', 'demo', '--data', data)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert 'cannot find the place of this process in its cluster (ValueError invalid literal' in ran.err
    assert '--distributed off' in ran.err


REQUESTS = """
import urllib.error, urllib.request

class Answer:
    def __init__(self, status_code, text):
        self.status_code, self.text = status_code, text

def get(url, headers, timeout):
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return Answer(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, '')
"""


@contextlib.contextmanager
def metadata(attributes: dict[str, str]) -> Iterator[str]:
    """The address of a server of a cloud's metadata."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition('/')[2])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or '').encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def tpu(tmp_path):
    """The variables of a TPU VM, with what jax needs there."""
    (tmp_path / 'requests.py').write_text(REQUESTS)
    return {
        **UNSET,
        'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}',
        'JAX_FORCE_TPU_INIT': '1',
        'JAX_COORDINATOR_PORT': str(free_port()),
    }


def test_hosts_of_a_slice_in_gke_find_one_another(tpu):
    with metadata({'tpu-env': "ACCELERATOR_TYPE: 'v5e-8'\n"}) as address:
        gke = {**tpu, 'TPU_WORKER_HOSTNAMES': 'localhost,localhost', 'GCE_METADATA_IP': address}
        ran = run_processes(PRINTS, env=[{**gke, 'TPU_WORKER_ID': str(n)} for n in range(2)])
    for n in range(2):
        assert (ran[n].code, ran[n].out) == (0, f"{n} 2 ('GKE TPU', None)\n[0, 1]\n"), ran[n].err


def test_hosts_of_a_slice_in_gce_find_one_another(tpu):
    with contextlib.ExitStack() as stack:
        each = []
        for n in range(2):
            attributes = {
                'tpu-env': "WORKER_ID: '0'\n",
                'agent-worker-number': str(n),
                'worker-network-endpoints': 'unknown:unknown:127.0.0.1,unknown:unknown:127.0.0.1',
            }
            address = stack.enter_context(metadata(attributes))
            each.append({**tpu, 'METADATA': '1', 'GCE_METADATA_IP': address})
        ran = run_processes(PRINTS, env=each)
    for n in range(2):
        assert (ran[n].code, ran[n].out) == (0, f"{n} 2 ('GCE TPU', None)\n[0, 1]\n"), ran[n].err


def test_a_tpu_vm_with_a_single_host_does_not_join(tpu):
    with metadata({'tpu-env': ''}) as address:
        single = {
            **tpu,
            'TPU_WORKER_HOSTNAMES': 'localhost',
            'TPU_WORKER_ID': '0',
            'GCE_METADATA_IP': address,
        }
        (ran,) = run_processes(PRINTS, 1, env=single)
    assert (ran.code, ran.out) == (0, '0 1 None\n'), ran.err


def test_an_indexed_job_of_kubernetes_does_not_join_by_itself():
    pod = {**UNSET, 'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}
    (ran,) = run_processes(PRINTS, 1, env=pod)
    assert (ran.code, ran.out, ran.err) == (0, '0 1 None\n', '')
