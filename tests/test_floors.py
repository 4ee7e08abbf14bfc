"""Every file imports only from lower floors, and public names import nothing until they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From low to high. A module imports only from lower floors; one that ends in / is a package, whose modules
# may also import one another.
FLOORS = (
    'config version signals messages threads compilation',
    'atomic files json_fields progress_bar weight_options mesh_text device_kinds clusters row_shards',
    'folders sharding pods gathering',
    'inputs/',
    'model.__init__ model.equations model.input_checks',
    'model.quantized',
    'model.products',
    'model.weights',
    'model.layers model.attention model.prefix_kernels',
    'model.prefix_attention',
    'model.fused',
    'model.clip model.projector model.llama',
    'model.vipllava',
    'model.params model.vocabulary model.cost',
    'weight_sharding',
    'quantizing',
    'data/ demo/',
    'integrity',
    'storage manifest hugging_face',
    'arrays',
    'checkpoint',
    'generation/',
    'convert/',
    'answering/',
    'placement device_memory hub',
    'loading',
    'ceilings',
    'engine/',
    'asking/ protocol/',
    'batch_files/ serving/ training/ benchmark/ evaluation/ doctor/',
    'cli/ notebook',
    '__init__ __main__',
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
FILES = sorted((ROOT / 'vipllava_jax').rglob('*.py'))
# The beginnings of names of tensors in PyTorch's checkpoints, which only `convert` may know.
PYTORCH_NAMES = (
    *('self_attn.', 'input_layernorm', 'post_attention_layernorm', 'embed_tokens', 'lm_head'),
    *('multi_modal_projector', 'vision_tower.', 'language_model.', 'vision_model.', 'patch_embedding'),
)


def module(file: Path) -> str:
    """The name of a file's module within the package; that of a package ends in __init__."""
    return '.'.join(file.relative_to(ROOT / 'vipllava_jax').with_suffix('').parts)


def entries(name: str) -> list[str]:
    """The entries of FLOORS for a module or a name in it."""
    return [entry for entry in FLOOR if f'{name}.'.startswith(entry.removesuffix('/') + '.')]


def imports(file: Path) -> set[str]:
    """What a file imports from anywhere: 'json', 'vipllava_jax.config.Config'."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


@pytest.mark.parametrize('file', FILES, ids=module)
def test_every_file_has_one_entry_and_imports_only_from_lower_floors(file):
    (entry,) = entries(module(file))
    for name in imports(file):
        package, _, name = name.partition('.')
        if package == 'vipllava_jax':
            imported = max(entries(name), key=len, default='__init__')
            lower = FLOOR[imported] < FLOOR[entry] or (imported == entry and entry.endswith('/'))
            assert lower, f'{module(file)} imports {name}, but {imported} is not on a lower floor'


def test_every_entry_has_a_file():
    modules = {module(file) for file in FILES}
    assert not {entry for entry in FLOOR if entry.removesuffix('/') + '.__init__' not in modules} - modules


@pytest.mark.parametrize('file', FILES, ids=module)
def test_only_convert_knows_the_names_of_pytorch(file):
    if not module(file).startswith('convert.'):
        text = file.read_text()
        assert not [name for name in PYTORCH_NAMES if name in text]


def test_only_convert_and_the_peer_use_the_table_of_names():
    users = {module(file) for file in FILES if any('convert.table' in name for name in imports(file))}
    assert {name for name in users if not name.startswith('convert.')} <= {'benchmark.peer'}


@pytest.mark.parametrize('file', FILES, ids=module)
def test_flax_nnx_is_never_imported(file):
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
        ('import vipllava_jax.cli.chat', ('jax', 'numpy', 'PIL', 'rich')),
        ('import vipllava_jax.evaluation.cases', ('jax',)),
        ('import vipllava_jax.engine, vipllava_jax.engine.picture_worker', ('jax', 'tokenizers')),
        ('import vipllava_jax.cli.regions', ('jax', 'numpy', 'PIL', 'rich')),
        ('import vipllava_jax.cli.batch', ('jax', 'numpy', 'PIL', 'rich')),
        ('import vipllava_jax.answering.region_marks, vipllava_jax.data.coco', ('jax',)),
    ],
)
def test_heavy_packages_are_not_imported_early(statement, absent):
    code = f'import sys; {statement}; sys.exit(", ".join(m for m in {absent} if m in sys.modules) or 0)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_is_documented():
    import vipllava_jax

    for name in vipllava_jax.__all__:
        assert getattr(vipllava_jax, name).__doc__ or name.isupper(), name
