"""Finds the coordinator, count and index with which this process joins others, or why it cannot join."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from vipllava_jax.messages import brief, listed, one_line

MODES = ('auto', 'on', 'off')
VARIABLES = {
    'coordinator': 'JAX_COORDINATOR_ADDRESS',
    'count': 'JAX_NUM_PROCESSES',
    'index': 'JAX_PROCESS_ID',
}
FLAGS = {'coordinator': '--coordinator', 'count': '--process-count', 'index': '--process-index'}
MAX_PROCESSES = 1 << 20
ADDRESS = re.compile(r'(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})')
CLUSTER_VARIABLES = (  # without any of them, and without libtpu, jax detects no cluster
    *('SLURM_JOB_ID', 'OMPI_MCA_orte_hnp_uri', 'OMPI_COMM_WORLD_SIZE', 'JOB_COMPLETION_INDEX'),
    *('TPU_LIBRARY_PATH', 'JAX_FORCE_TPU_INIT'),
)
GIVEN = 'flags and variables'
ANSWER_SECONDS = 5.0  # in which a host must accept a connection


@dataclass(frozen=True)
class Place:
    """The place of this process among those that join."""

    coordinator: str  # 'HOST:PORT' of process 0
    count: int
    index: int
    found_by: str  # GIVEN, or the name of the cluster
    local_devices: list[int] | None = None  # None: all devices of the host

    @property
    def name(self) -> str:
        return f'process {self.index} of {self.count}'


def find_place(
    mode: str, given: Mapping[str, str | int | None], environment: Mapping[str, str], timeout: int
) -> Place | None:
    """The place of this process, from `given` values, variables, or the cluster; None if it runs alone.

    `given` has the keys of VARIABLES, with None for values that are not given. Raises ValueError for a value
    that is invalid or missing.
    """
    if mode not in MODES:
        raise ValueError(f'distributed: {brief(mode)}, expected {", ".join(MODES)}')
    if mode == 'off':
        return None
    values = {name: _value(name, given.get(name), environment) for name in VARIABLES}
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) == len(VARIABLES):
        place = Place(**known, found_by=GIVEN)
    else:
        found = _from_cluster(known, timeout, mode)
        if found is None:
            if known or mode == 'on':
                raise ValueError(_missing(known))
            return None
        place = found
    if not 0 <= place.index < place.count:
        raise ValueError(
            f'{FLAGS["index"]} or {VARIABLES["index"]}: {place.index}, but with {place.count} processes '
            f'expected 0 to {place.count - 1}'
        )
    return None if place.count == 1 and mode == 'auto' else place


def _value(name: str, given: str | int | None, environment: Mapping[str, str]) -> Any:
    """A value from a flag or a variable, checked; None if neither is there."""
    label, value = (FLAGS[name], given) if given is not None else (VARIABLES[name], None)
    if value is None and (value := environment.get(label) or None) is None:
        return None
    if name == 'coordinator':
        return _address(label, str(value))
    if not re.fullmatch('[0-9]{1,9}', str(value)):
        raise ValueError(f'{label}: {brief(value)}, expected a whole number')
    number = int(value)
    if name == 'count' and not 1 <= number <= MAX_PROCESSES:
        raise ValueError(f'{label}: {number}, expected 1 or more processes, and at most {MAX_PROCESSES}')
    return number


def _address(label: str, value: str) -> str:
    found = ADDRESS.fullmatch(value)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise ValueError(f'{label}: {brief(value)}, expected HOST:PORT of process 0, as in 10.0.0.1:8476')
    return value


def _missing(known: Mapping[str, Any]) -> str:
    names = [f'{FLAGS[name]} or {VARIABLES[name]}' for name in VARIABLES if name not in known]
    return (
        f'no cluster that jax knows was found, so give {", ".join(names)} to join the processes, or '
        '--distributed off to run alone'
    )


def _from_cluster(known: Mapping[str, Any], timeout: int, mode: str) -> Place | None:
    """The place according to the cluster in which the process runs, if any; known values take precedence."""
    try:
        cluster = _find_cluster()
        if cluster is None:
            return None
        count = known.get('count') or cluster.get_process_count()
        if count == 1 and mode == 'auto':
            return Place('', 1, 0, _cluster_name(cluster))
        port = os.environ.get('JAX_COORDINATOR_PORT')
        coordinator = known.get('coordinator') or cluster.get_coordinator_address(
            timeout_secs=timeout, override_coordinator_port=port
        )
        index = known['index'] if 'index' in known else cluster.get_process_id()
        # jax itself reads JAX_LOCAL_DEVICE_IDS
        chosen = _on_tpu() or os.environ.get('JAX_LOCAL_DEVICE_IDS')
        local = None if chosen else cluster.get_local_process_id()
    except Exception as error:  # the variables, the network or the packages of a cluster
        raise ValueError(
            f'jax cannot find the place of this process in its cluster ({one_line(error)}): give '
            f'{", ".join(FLAGS.values())}, or --distributed off to run alone'
        ) from None
    coordinator = _address(f"{_cluster_name(cluster)}'s coordinator", coordinator)
    return Place(coordinator, count, index, _cluster_name(cluster), None if local is None else [local])


def _find_cluster() -> Any:
    """jax's class for the cluster in which this process runs, or None."""
    if not any(name in os.environ for name in CLUSTER_VARIABLES) and find_spec('libtpu') is None:
        return None  # without importing jax, so that errors in files are reported sooner
    # jax has no public function that returns the number of processes before they join
    from jax._src.clusters import ClusterEnv, K8sCluster

    in_job = 'JOB_COMPLETION_INDEX' in os.environ and find_spec('kubernetes') is not None
    for cluster in ClusterEnv._cluster_types:
        is_automatic = not cluster.opt_in_only_method and (cluster is not K8sCluster or in_job)
        if is_automatic and cluster.is_env_present():
            return cluster
    return None


def _cluster_name(cluster: Any) -> str:
    return {'SlurmCluster': 'Slurm', 'OmpiCluster': 'Open MPI', 'K8sCluster': 'Kubernetes'}.get(
        cluster.__name__, cluster.__name__.removesuffix('TpuCluster').upper() + ' TPU'
    )


def _on_tpu() -> bool:
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm


def check_port(place: Place) -> None:
    """Raises ValueError if process 0 cannot listen on the coordinator's port; jax may crash then."""
    port = int(place.coordinator.rpartition(':')[2])
    try:
        with socket.create_server(('', port)):
            pass
    except OSError as error:
        raise ValueError(
            f'{place.name} cannot listen on port {port} of this host ({os.strerror(error.errno or 0)}): '
            'another program may use it; choose another port for the coordinator'
        ) from None


def explain_absence(place: Place, timeout: int, environment: Mapping[str, str]) -> str:
    """A message about a time-out: what this process can observe of the others, and what to check."""
    port = int(place.coordinator.rpartition(':')[2])
    if place.index == 0:
        addresses = _connected(port)  # also that of process 0 itself
        found = f'{max(len(addresses) - 1, 0)} of them are connected'
        if len(addresses) > 1:
            found += f', from {listed(sorted({*addresses}), 4)}'
        found += ': look for those that did not start, or that have another coordinator'
    else:
        found = _reach(place.coordinator)
    advice = f'a firewall may block port {port} (on TPUs jax uses 8482, but clouds often open only 8476: set '
    advice += 'JAX_COORDINATOR_PORT)'
    stale = sorted(name for name in environment if name.startswith('MEGASCALE_'))
    if stale:
        advice += f'; unset {listed(stale, 2)} if left from another job'
    if place.found_by != GIVEN:
        advice += '; --distributed off runs this process alone'
    where = f'at {place.coordinator} ({place.found_by})'
    return f'{place.name} waited {timeout} s for the others {where}: {found}; {advice}'


def _reach(address: str) -> str:
    """Tries to connect to the coordinator -> a phrase about the result."""
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), ANSWER_SECONDS):
            return 'process 0 answers: another one did not start, or counts and indices do not agree'
    except socket.gaierror:
        return f'the name {host} is not known here'
    except ConnectionRefusedError:
        return f'{host} answers, but nothing listens on the port: process 0 did not start there, or has ended'
    except OSError as error:
        return f'{host} does not answer ({one_line(error)})'


def _connected(port: int) -> list[str]:
    """The addresses at the other ends of the connections to a port of this host, where Linux lists them."""
    found = []
    for table, family in (('/proc/net/tcp', socket.AF_INET), ('/proc/net/tcp6', socket.AF_INET6)):
        try:
            with open(table) as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split()
            if state == '01' and int(local.rpartition(':')[2], 16) == port:
                words = remote.rpartition(':')[0]
                packed = b''.join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
                found.append(socket.inet_ntop(family, packed).removeprefix('::ffff:'))
    return found
