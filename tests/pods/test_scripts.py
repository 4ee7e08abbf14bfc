"""The files in docs/pods run against fakes of Slurm, gcloud and Kubernetes, with a tiny model."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import environment, free_port, run_processes
from vipllava_jax.row_shards import shards

FILES = Path(__file__).parent.parent.parent / 'docs' / 'pods'
FAKES = {
    'vipllava': 'exec {python} -m vipllava_jax "$@"',
    # as many tasks as the job has, in the order of their indices
    'srun': """
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost "$@" & pids="${{pids-}} $!"
done
for pid in $pids; do wait "$pid" || exit; done
""",
    # the command, as a login shell of each worker runs it
    'gcloud': """
for argument; do case $argument in --command=*) command=${{argument#--command=}} ;; esac; done
echo "$@" > gcloud.txt
for ((i = 0; i < FAKE_WORKERS; i++)); do
    WORKER=$i JAX_PROCESS_ID=$i bash -c "$command" & pids="${{pids-}} $!"
done
for pid in $pids; do wait "$pid" || exit; done
""",
    'curl': 'echo "$WORKER"',
}


@pytest.fixture
def place(data, tmp_path):
    """A working directory with the fakes in `bin`."""
    (tmp_path / 'bin').mkdir()
    for name, text in FAKES.items():
        fake = tmp_path / 'bin' / name
        fake.write_text('#!/bin/bash\n' + text.format(python=shlex.quote(sys.executable)))
        fake.chmod(0o755)
    return tmp_path


@pytest.fixture
def variables(place, data, folder):
    """The variables of a script: what it takes from its user, and what keeps jax on the CPU."""
    chosen = {'MODEL': str(folder), 'DATA': str(data), 'OUTPUT': 'answers.jsonl', 'MESH': 'tensor=2,data=2'}
    path = f'{place / "bin"}{os.pathsep}{os.environ["PATH"]}'
    return environment(2, {**chosen, 'PATH': path})


def run(script: str, variables: dict[str, str], place: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', str(FILES / script)],
        env=variables,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=240,
    )


def parts(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob('answers.*-of-*.jsonl'))


def expected_parts(count: int) -> list[str]:
    return [shard.file(Path('answers.jsonl')).name for shard in shards(count)]


def header(script: str) -> dict[str, str]:
    """The options of sbatch in a script."""
    lines = [line.removeprefix('#SBATCH --') for line in (FILES / script).read_text().splitlines()]
    return dict(line.partition('=')[::2] for line in lines if not line.startswith('#') and '=' in line)


@pytest.mark.by_hand
def test_a_slurm_array_answers_all_parts(place, variables):
    assert header('slurm-shards.sbatch')['array'] == '0-3'
    for task in range(4):
        array = {'ID': task, 'MIN': 0, 'MAX': 3, 'COUNT': 4}
        slurm = {f'SLURM_ARRAY_TASK_{name}': str(value) for name, value in array.items()}
        job = {'SLURM_JOB_ID': str(100 + task), 'SLURM_NTASKS': '1'}
        ran = run('slurm-shards.sbatch', {**variables, **slurm, **job}, place)
        assert ran.returncode == 0, ran.stderr
    assert parts(place) == expected_parts(4)
    assert 'all 4 parts are complete' in ran.stderr
    assert ran.stdout.splitlines()[1].split()[:2] == ['rows', '20']


@pytest.mark.slow
def test_tasks_of_slurm_join(place, variables):
    assert header('slurm-joined.sbatch')['ntasks-per-node'] == header('slurm-joined.sbatch')['gpus-per-node']
    slurm = {'SLURM_JOB_ID': '4711', 'SLURM_NTASKS': '2', 'JAX_COORDINATOR_PORT': str(free_port())}
    ran = run('slurm-joined.sbatch', {**variables, **slurm}, place)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[1].split()[:2] == ['rows', '20']
    assert 'process 0 of 2, 2 local of 4 devices (cpu), joined at localhost:' in ran.stderr
    assert 'found by Slurm' in ran.stderr
    assert len((place / 'answers.jsonl').read_text().splitlines()) == 21


@pytest.mark.slow
def test_hosts_of_a_tpu_slice_answer_their_parts(place, variables):
    slice_ = {'TPU_NAME': 'mine', 'ZONE': 'z', 'HOSTS': '2', 'FAKE_WORKERS': '2'}
    ran = run('tpu-shards.sh', {**variables, **slice_, 'JAX_NUM_PROCESSES': '2'}, place)
    assert ran.returncode == 0, ran.stderr
    assert parts(place) == expected_parts(2)
    assert (
        (place / 'gcloud.txt').read_text().startswith('compute tpus tpu-vm ssh mine --zone=z --worker=all ')
    )


@pytest.mark.by_hand
def test_hosts_of_a_tpu_slice_join(place, variables):
    joined = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_port()}', 'JAX_NUM_PROCESSES': '2'}
    slice_ = {'TPU_NAME': 'mine', 'ZONE': 'z', 'FAKE_WORKERS': '2'}
    ran = run('tpu-joined.sh', {**variables, **joined, **slice_}, place)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[1].split()[:2] == ['rows', '20']
    assert 'JAX_COORDINATOR_PORT=8476' in (place / 'gcloud.txt').read_text()


@pytest.mark.parametrize('script', ['tpu-joined.sh', 'tpu-shards.sh'])
def test_a_script_for_a_tpu_slice_names_what_it_needs(place, variables, script):
    ran = run(script, {**variables, 'TPU_NAME': 'mine', 'ZONE': ''}, place)
    assert ran.returncode != 0
    assert 'ZONE: its zone' in ran.stderr
    assert not (place / 'gcloud.txt').exists()


def command_of(container: dict[str, Any], data: Path, folder: Path) -> list[str]:
    """The arguments of the `vipllava` command of a container, with our files in place of the shared ones."""
    name, *words = [*container['command'], *container['args']]
    assert name == 'vipllava'
    ours = {'--model': folder, '--data': data, '--output': 'answers.jsonl', '--mesh': 'tensor=2,data=2'}
    for option, value in ours.items():
        words = [f'{option}={value}' if word.startswith(f'{option}=') else word for word in words]
    return words


def check_volumes(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Asserts that what is mounted is there, and that the files lie on it."""
    volumes = {volume['name'] for volume in pod['volumes']}
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert mounts.keys() <= volumes
    files = [word.partition('=')[2] for word in container['args'] if '=/' in word]
    assert len(files) == 3
    assert all(Path(file).is_relative_to(mounts['shared']) for file in files)


@pytest.mark.slow
def test_pods_of_an_indexed_job_answer_their_parts(data, folder, tmp_path):
    job = yaml.safe_load((FILES / 'indexed-job-shards.yaml').read_text())
    assert (job['apiVersion'], job['kind']) == ('batch/v1', 'Job')
    spec, pod = job['spec'], job['spec']['template']['spec']
    assert spec['completionMode'] == 'Indexed'
    (container,) = pod['containers']
    check_volumes(pod, container)
    for index in range(spec['completions']):
        pod_variables = {
            **dict.fromkeys(('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'), ''),
            **{'JOB_COMPLETION_INDEX': str(index), 'KUBERNETES_SERVICE_HOST': '10.0.0.1'},
        }
        (ran,) = run_processes(command_of(container, data, folder), 1, env=pod_variables)
        assert ran.code == 0, ran.err
    assert parts(tmp_path) == expected_parts(spec['completions'])
    assert 'all 4 parts are complete' in ran.err


@pytest.mark.by_hand
def test_pods_of_a_jobset_join(data, folder, tmp_path):
    jobs = yaml.safe_load((FILES / 'jobset-joined.yaml').read_text())
    assert jobs['apiVersion'].startswith('jobset.x-k8s.io/')
    (replicated,) = jobs['spec']['replicatedJobs']
    spec = replicated['template']['spec']
    assert spec['completionMode'] == 'Indexed'
    assert spec['completions'] == spec['parallelism'] == 2
    pod = spec['template']['spec']
    (container,) = pod['containers']
    check_volumes(pod, container)
    given = {entry['name']: entry.get('value') for entry in container['env']}
    name = jobs['metadata']['name']
    assert given['JAX_COORDINATOR_ADDRESS'] == f'{name}-{replicated["name"]}-0-0.{name}:8476'
    assert given['JAX_NUM_PROCESSES'] == '2'
    assert given['JAX_PROCESS_ID'] is None  # from the index of the pod
    kubernetes = {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}
    each = [{**kubernetes, 'JOB_COMPLETION_INDEX': str(n)} for n in range(2)]
    first, second = run_processes(command_of(container, data, folder), env=each)
    assert (first.code, second.code) == (0, 0), first.err
    assert first.out.splitlines()[1].split()[:2] == ['rows', '20']
    assert len((tmp_path / 'answers.jsonl').read_text().splitlines()) == 21
