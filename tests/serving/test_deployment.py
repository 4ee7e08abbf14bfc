"""The files that deploy a server: their options exist, their parts fit together, and they hold no secrets."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vipllava_jax import cli
from vipllava_jax.cli.serve import serve
from vipllava_jax.protocol.served import Limits
from vipllava_jax.serving.options import ServerOptions

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / 'docs/serving'
CLIENT = FOLDER / 'client.py'
COMPOSE = yaml.safe_load((FOLDER / 'compose.yaml').read_text())
DEPLOYMENT, CLAIM, SERVICE = yaml.safe_load_all((FOLDER / 'kubernetes.yaml').read_text())
POD = DEPLOYMENT['spec']['template']
(CONTAINER,) = POD['spec']['containers']
DOCKERFILE = (FOLDER / 'Dockerfile').read_text()
INSTRUCTIONS = dict(re.findall(r'^([A-Z]+) ((?:.|\\\n)+)$', DOCKERFILE, re.MULTILINE))


def command(kind: str) -> list[str]:
    """The words of ENTRYPOINT or CMD."""
    return yaml.safe_load(INSTRUCTIONS[kind])


def options_of(arguments: list[str]) -> dict[str, Any]:
    """The values of the options of `vipllava serve`; fails if there are other words."""
    return serve.make_context('serve', [*arguments]).params


ARGUMENTS = {
    'image': command('CMD'),
    **{name: service['command'] for name, service in COMPOSE['services'].items()},
    'kubernetes': CONTAINER['args'],
}


@pytest.mark.parametrize('arguments', ARGUMENTS.values(), ids=ARGUMENTS)
def test_the_options_exist(arguments):
    entry = command('ENTRYPOINT')
    assert entry[:2] == ['vipllava', 'serve']
    assert 'serve' in cli.COMMANDS
    found = options_of([*entry[2:], *arguments])
    assert (found['host'], found['port']) == ('0.0.0.0', 8000)


def test_the_image_runs_as_a_user_without_rights_and_checks_its_health():
    assert INSTRUCTIONS['USER'] == 'vipllava'
    assert DOCKERFILE.index('\nUSER') < DOCKERFILE.index('\nENTRYPOINT')
    assert ':8000/health' in DOCKERFILE
    assert INSTRUCTIONS['ARG'] == 'EXTRAS=serve'


def test_copied_files_exist_and_are_all_that_the_package_needs():
    copied = [
        name for line in re.findall(r'^COPY (.+) \S+$', DOCKERFILE, re.MULTILINE) for name in line.split()
    ]
    assert copied == ['pyproject.toml', 'README.md', 'LICENSE', 'vipllava_jax']
    assert all((ROOT / name).exists() for name in copied)


def test_extras_exist():
    extras = re.findall(r'EXTRAS(?:=|: )([\w,]+)', DOCKERFILE + (FOLDER / 'compose.yaml').read_text())
    known = re.findall(r'^([\w-]+) = \[', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)
    assert len(extras) == 3
    assert {name for entry in extras for name in entry.split(',')} <= {*known}


def test_compose_builds_both_images_and_reads_the_key_from_a_file():
    for name, service in COMPOSE['services'].items():
        assert service['profiles'] == [name]
        assert (FOLDER / service['build']['context'] / service['build']['dockerfile']).exists()
        assert service['env_file'] == 'server.env'
        assert all(port.startswith('127.0.0.1:') for port in service['ports'])
        drain = options_of(service['command'])['drain']
        assert int(service['stop_grace_period'].removesuffix('s')) > drain
    assert not list(FOLDER.glob('*.env'))
    assert '*.env' in (FOLDER / '.gitignore').read_text().split()


def test_the_probes_ask_paths_that_say_what_they_mean():
    paths = {
        name: CONTAINER[f'{name}Probe']['httpGet']['path'] for name in ('startup', 'liveness', 'readiness')
    }
    assert paths == {'startup': '/health', 'liveness': '/health', 'readiness': '/ready'}


def test_a_pod_has_time_to_drain():
    wait = int(CONTAINER['lifecycle']['preStop']['exec']['command'][1])
    drain = options_of(CONTAINER['args'])['drain']
    assert POD['spec']['terminationGracePeriodSeconds'] > wait + drain


def test_the_parts_of_the_manifest_fit_together():
    assert DEPLOYMENT['spec']['selector']['matchLabels'] == POD['metadata']['labels']
    assert SERVICE['spec']['selector'] == POD['metadata']['labels']
    assert SERVICE['spec']['ports'][0]['targetPort'] == CONTAINER['ports'][0]['name']
    volumes = {volume['name']: volume for volume in POD['spec']['volumes']}
    assert {mount['name'] for mount in CONTAINER['volumeMounts']} == {*volumes}
    assert volumes['cache']['persistentVolumeClaim']['claimName'] == CLAIM['metadata']['name']
    assert POD['metadata']['annotations']['prometheus.io/port'] == str(CONTAINER['ports'][0]['containerPort'])


def test_the_key_comes_from_a_secret():
    (variable,) = CONTAINER['env']
    (option,) = [option for option in serve.params if option.envvar == variable['name']]
    assert option.name == 'api_keys'
    assert 'secretKeyRef' in variable['valueFrom']


def test_a_pod_may_do_nothing_that_it_does_not_need():
    assert POD['spec']['securityContext']['runAsNonRoot']
    assert f'--uid {POD["spec"]["securityContext"]["runAsUser"]} ' in DOCKERFILE
    assert CONTAINER['securityContext'] == {
        'allowPrivilegeEscalation': False,
        'readOnlyRootFilesystem': True,
        'capabilities': {'drop': ['ALL']},
    }


# The page and the examples


def test_examples_are_valid():
    page = (ROOT / 'docs/serving.md').read_text()
    for text in (*re.findall(r'^```python\n(.*?)^```', page, re.MULTILINE | re.DOTALL), CLIENT.read_text()):
        compile(text, 'docs', 'exec')
    assert subprocess.run(['sh', '-n', FOLDER / 'client.sh'], check=False).returncode == 0


def test_the_limits_on_the_page_are_those_of_requests():
    page = ' '.join((ROOT / 'docs/serving.md').read_text().partition('## Limits')[2].split())
    limits = Limits()
    for text in (
        f'A body has at most {limits.body_bytes >> 20} MiB',
        f'all bodies together take at most {ServerOptions.memory_for_bodies >> 30} GiB',
        f'at most {ServerOptions.connections:,} connections',
        f'A picture has at most {limits.picture_bytes >> 20} MiB and',
        f'and {limits.picture_pixels // 10**6} million pixels',
        f'{limits.pictures} pictures, {limits.marks} marks, {limits.regions:,} regions, ',
        f'{limits.prompts} prompts, {limits.answers} answers and {limits.stop_strings} stop strings',
    ):
        assert text in page
