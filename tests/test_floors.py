"""Every file imports only from lower floors, and public names import nothing until they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    'vipllava_jax.config': 0,
    'vipllava_jax.signals': -1,  # imported by the first line of the command
    'vipllava_jax.atomic': -1,
    'vipllava_jax.messages': -1,
    'vipllava_jax.files': 0,
    'vipllava_jax.folders': 1,
    'vipllava_jax.compilation': 0,
    'vipllava_jax.model.equations': 0,
    'vipllava_jax.integrity': 0,
    'vipllava_jax.storage': 1,
    'vipllava_jax.arrays': 2,
    'vipllava_jax.hugging_face': 1,
    'vipllava_jax.inputs': 1,
    'vipllava_jax.model.quantized': 1,
    'vipllava_jax.model.cost': 1,
    'vipllava_jax.manifest': 2,
    'vipllava_jax.model.weights': 2,
    'vipllava_jax.demo': 2,
    'vipllava_jax.data': 2,
    'vipllava_jax.ceilings': 3,
    'vipllava_jax.model.layers': 3,
    'vipllava_jax.model.clip': 4,
    'vipllava_jax.model.llama': 4,
    'vipllava_jax.model.vipllava': 5,
    'vipllava_jax.model.vocabulary': 6,
    'vipllava_jax.checkpoint': 6,
    'vipllava_jax.generation': 6,
    'vipllava_jax.convert': 7,
    'vipllava_jax.answering': 8,
    'vipllava_jax.hub': 8,
    'vipllava_jax.loading': 9,
    'vipllava_jax.benchmark': 10,
    'vipllava_jax.training': 10,
    'vipllava_jax.evaluation': 11,
    'vipllava_jax.cli': 12,
    'vipllava_jax.__main__': 13,
}
ONE_FLOOR = (
    'vipllava_jax.inputs',
    'vipllava_jax.data',
    'vipllava_jax.demo',
    'vipllava_jax.generation',
    'vipllava_jax.convert',
    'vipllava_jax.answering',
    'vipllava_jax.benchmark',
    'vipllava_jax.training',
    'vipllava_jax.evaluation',
    'vipllava_jax.cli',
)  # modules of the same entry may import each other
FILES = sorted((ROOT / 'vipllava_jax').rglob('*.py'))


def module(file: Path) -> str:
    return '.'.join(p for p in file.relative_to(ROOT).with_suffix('').parts if p != '__init__')


def home(name: str) -> str | None:
    """The longest entry of FLOORS that holds a module or a name in it."""
    return max((m for m in FLOORS if name == m or name.startswith(m + '.')), key=len, default=None)


def imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_only_from_below(file):
    own = home(module(file))
    if own is None:  # the packages' __init__ files, which import lazily
        assert file.name == '__init__.py'
        return
    for name in imports(file):
        other = home(name)
        if other and not (other == own and own in ONE_FLOOR):
            assert FLOORS[other] < FLOORS[own], (
                f'{own} (floor {FLOORS[own]}) imports {name} ({FLOORS[other]})'
            )


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_mutable_modules(file):
    assert not any(name.startswith('flax.nnx') for name in imports(file))


@pytest.mark.parametrize(
    ('statement', 'absent'),
    [
        ('import vipllava_jax', ('jax', 'numpy', 'PIL')),
        ('import vipllava_jax.cli', ('jax', 'numpy', 'PIL', 'rich')),
        ('import vipllava_jax.inputs.processor, vipllava_jax.inputs.marks', ('jax',)),
        ('import vipllava_jax.demo.examples, vipllava_jax.demo.vocabulary', ('jax',)),
        ('import vipllava_jax.loading', ('orbax', 'torch')),
        ('import vipllava_jax.training, vipllava_jax.cli.train', ('jax', 'numpy')),
        ('import vipllava_jax.data.batches', ('jax',)),
        ('import vipllava_jax.evaluation, vipllava_jax.cli.eval', ('jax', 'numpy')),
        ('import vipllava_jax.answering, vipllava_jax.cli.ask', ('jax', 'numpy', 'PIL', 'rich')),
        ('import vipllava_jax.evaluation.cases', ('jax',)),
    ],
)
def test_heavy_packages_wait(statement, absent):
    code = f'import sys; {statement}; sys.exit(", ".join(m for m in {absent} if m in sys.modules) or 0)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    import vipllava_jax

    for name in vipllava_jax.__all__:
        assert getattr(vipllava_jax, name).__doc__ or name.isupper(), name
