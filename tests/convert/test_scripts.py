"""The scripts in convert/ run from another folder, and need the clone but no installed package.

The interpreter runs without its `site` module, which makes an editable installation invisible; the
dependencies come from PYTHONPATH. A package that is installed in full would be found there, which is why each
test first checks that it is not.
"""

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from vipllava_jax import checkpoint
from vipllava_jax.cli.convert import convert
from vipllava_jax.config import VIP_LLAVA_7B
from vipllava_jax.convert.table import BRIDGE, CLIP, LLAMA, PROJECTOR, TEXT, VISION, leaves

SCRIPTS = Path(__file__).parents[2] / 'convert'


@pytest.fixture
def run(tmp_path):
    """Runs a script in another folder, as `python convert/NAME.py` would without an installed package."""
    packages = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(packages)}

    def run(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, '-S', *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    assert 'No module named' in run('-c', 'import vipllava_jax').stderr
    return run


@pytest.mark.slow
def test_a_checkpoint_is_converted_to_flax_and_back(run, source, tmp_path):
    done = run(SCRIPTS / 'vipllava_to_flax.py', source, 'flax', '--verify')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('flax: ')
    assert 'logits                   largest difference 0' in done.stdout
    assert checkpoint.is_checkpoint(tmp_path / 'flax')
    done = run(SCRIPTS / 'flax_to_vipllava.py', 'flax', 'pytorch')
    assert done.returncode == 0, done.stderr
    done = run(SCRIPTS / 'vipllava_to_flax.py', 'pytorch', 'again')
    assert done.returncode == 0, done.stderr
    first, second = (dict(checkpoint.open(tmp_path / name).stream()) for name in ('flax', 'again'))
    assert first.keys() == second.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path])


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        (
            'vipllava_to_flax',
            ['FLAX', 'new'],
            'is already converted; convert/flax_to_vipllava.py converts it',
        ),
        (
            'flax_to_vipllava',
            ['PYTORCH', 'new'],
            'is a PyTorch checkpoint; convert/vipllava_to_flax.py converts it',
        ),
        ('flax_to_vipllava', ['FLAX', 'new', '--quantize', 'int8'], "No such option '--quantize'"),
        ('vipllava_to_flax', ['PYTORCH', 'new', '--verify', '--adapter', 'a'], 'leave one of them out'),
        ('vipllava_to_flax', ['PYTORCH', 'taken'], 'exists; choose another folder'),
        ('vipllava_to_flax', ['./missing', 'new'], 'missing: no such folder'),
        ('flax_to_vipllava', ['FLAX', 'new', '--adapter', ''], '--adapter'),
    ],
)
def test_a_script_refuses_what_the_command_refuses(run, folder, source, tmp_path, script, arguments, message):
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'notes.txt').touch()
    places = {'FLAX': folder, 'PYTORCH': source}
    done = run(SCRIPTS / f'{script}.py', *(places.get(argument, argument) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('vipllava: ')
    assert done.stderr.count('\n') == 1
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['taken']


@pytest.mark.parametrize('script', ['vipllava_to_flax', 'flax_to_vipllava'])
def test_the_options_are_those_of_the_command(run, script):
    done = run(SCRIPTS / f'{script}.py', '--help')
    assert done.returncode == 0, done.stderr
    for parameter in convert.params:
        option = isinstance(parameter, click.Option)
        shown = (parameter.opts[0] if option else parameter.name.upper()) in done.stdout
        assert shown == (script == 'vipllava_to_flax' or parameter.name != 'quantize')  # only to Flax


def test_the_readme_lists_every_name_path_and_layout():
    text = (SCRIPTS / 'README.md').read_text()
    layouts = {leaf.path: leaf.layout for leaf in leaves(VIP_LLAVA_7B)}
    for part, prefix, rows in (
        ('clip', VISION, CLIP),
        ('projector', BRIDGE, PROJECTOR),
        ('llama', TEXT, LLAMA),
    ):
        assert f'`{prefix}` and `{part}/`' in text
        for name, path, _ in rows:
            assert f'| `{name}` | `{path}` | `{layouts[f"{part}/{path.format(0)}"]}` |\n' in text
