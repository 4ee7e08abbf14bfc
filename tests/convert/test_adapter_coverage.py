"""Adapters that lack tensors listed in their config are refused by name; other adapters are read."""

import json
import os

import numpy as np
import pytest

from tests.conftest import TINY
from tests.convert.files import pair, write_adapter, write_bin
from vipllava_jax.convert import adapters
from vipllava_jax.convert.adapter_config import CONFIG
from vipllava_jax.messages import CheckpointError

TEXT = 'base_model.model.model.language_model.layers.'
AUTHORS = 'base_model.model.model.layers.'
TOWER = 'base_model.model.model.vision_tower.encoder.layers.'
BRIDGE = 'base_model.model.model.multi_modal_projector.'
SIZES = {
    **{f'self_attn.{name}_proj': (48, 48) for name in 'qo'},
    **{f'self_attn.{name}_proj': (16, 48) for name in 'kv'},
    **{'mlp.up_proj': (56, 48), 'mlp.gate_proj': (56, 48), 'mlp.down_proj': (48, 56)},
}
PROJECTOR = {
    **{'projector_layernorm.weight': (160,), 'projector_layernorm.bias': (160,)},
    **{
        'linear_1.weight': (48, 160),
        'linear_1.bias': (48,),
        'linear_2.weight': (48, 48),
        'linear_2.bias': (48,),
    },
}


def pairs(*names, layers=range(3), stem=TEXT, rank=2):
    rng, found = np.random.default_rng(0), {}
    for name in names:
        full = next(full for full in SIZES if full.endswith(name))
        for i in layers:
            found |= pair(f'{stem}{i}.{full}', *SIZES[full], rng, rank)
    return found


def tower(name='q_proj', layers=range(12)):
    found = {}
    for i in layers:
        found |= pair(f'{TOWER}{i}.self_attn.{name}', 32, 32, np.random.default_rng(0))
    return found


def projector(*left_out, stem=BRIDGE):
    return {stem + n: np.zeros(shape, np.float32) for n, shape in PROJECTOR.items() if n not in left_out}


@pytest.fixture
def place(tmp_path):
    return tmp_path / 'adapter'


def message(place, tensors, **fields) -> str:
    write_adapter(place, tensors, **fields)
    with pytest.raises(CheckpointError) as error:
        adapters.read_adapter(place, TINY)
    assert str(error.value).startswith(f'{place}')
    assert len(str(error.value)) <= 500
    return str(error.value)


def read(place, tensors, **fields):
    write_adapter(place, tensors, **fields)
    return adapters.read_adapter(place, TINY)


@pytest.mark.parametrize('file_format', ['safetensors', 'bin'])
def test_an_adapter_without_tensors_is_refused(place, file_format):
    write_adapter(place, {}, target_modules=['q_proj'])
    if file_format == 'bin':
        (place / 'adapter_model.safetensors').unlink()
        write_bin(place / 'adapter_model.bin', {})
    with pytest.raises(CheckpointError, match='without the pair|holds? an empty dict|no tensors'):
        adapters.read_adapter(place, TINY)
    write_adapter(place, {})
    (place / 'adapter_model.bin').unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match='hold no tensors for this model'):
        adapters.read_adapter(place, TINY)


@pytest.mark.parametrize(
    'name', ['adapter_model.safetensors', 'adapter_model.bin', 'non_lora_trainables.bin']
)
def test_empty_adapter_files_are_refused(place, name):
    write_adapter(place, pairs('q_proj'))
    if name == 'adapter_model.bin':
        (place / 'adapter_model.safetensors').unlink()
    (place / name).write_bytes(b'')
    with pytest.raises(CheckpointError, match=f'{name}: (an empty file|truncated)'):
        adapters.read_adapter(place, TINY)


Q_AND_V = [
    ['q_proj', 'v_proj'],
    ['self_attn.q_proj', 'self_attn.v_proj'],
    r'.*\.(q_proj|v_proj)',
    r'model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj',
    r'.*language_model\.(model\.)?layers\.\d+\.(self_attn\.q_proj|self_attn\.v_proj)',
    [f'model.language_model.layers.{i}.self_attn.{n}_proj' for i in range(3) for n in 'qv'],
]


@pytest.mark.parametrize('targets', Q_AND_V)
def test_pairs_that_the_config_lists_must_exist(place, targets):
    """All forms of names in peft's configs, including modules with the same name in the tower."""
    found = read(place, pairs('q_proj', 'v_proj'), target_modules=targets)
    assert len(found.pairs) == 6
    error = message(place, pairs('q_proj'), target_modules=targets)
    assert 'without the pair that adapter_config.json says it has: ' in error
    assert 'model.language_model.layers.{0-2}.self_attn.v_proj' in error
    error = message(place, pairs('q_proj', 'v_proj', layers=[0]), target_modules=targets)
    assert 'layers.{1-2}.self_attn.q_proj, model.language_model.layers.{1-2}.self_attn.v_proj' in error
    error = message(place, pairs('q_proj') | pairs('v_proj', layers=[0, 2]), target_modules=targets)
    assert 'has: model.language_model.layers.1.self_attn.v_proj. ' in error


@pytest.mark.parametrize('stem', [AUTHORS, 'base_model.model.language_model.model.layers.', TEXT])
def test_every_tree_of_names(place, stem):
    error = message(place, pairs('q_proj', layers=[0, 1], stem=stem), target_modules=['q_proj'])
    assert 'layers.2.self_attn.q_proj' in error


def test_a_module_without_any_pair(place):
    for name in ('fc1', 'linear_1', 'lm_head', 'up_proj'):
        assert name in message(place, pairs('q_proj'), target_modules=['q_proj', name])
    # of other models
    read(place, pairs('q_proj'), target_modules=['q_proj', 'c_attn', 'query_key_value', 'qkv'])


def test_the_tower_has_all_its_pairs_or_none(place):
    targets = ['q_proj']
    assert len(read(place, pairs('q_proj') | tower(), target_modules=targets).pairs) == 15
    assert len(read(place, pairs('q_proj'), target_modules=targets).pairs) == 3
    error = message(place, pairs('q_proj') | tower(layers=range(5)), target_modules=targets)
    assert 'model.vision_tower.encoder.layers.{5-11}.self_attn.q_proj' in error
    assert 'language_model' in message(place, tower(), target_modules=targets)  # without the decoder's pairs
    read(place, tower(), target_modules=r'.*vision_tower.*q_proj')


def test_layers_that_are_left_out_on_purpose(place):
    only = pairs('q_proj', layers=[1])
    read(place, only, target_modules=['q_proj'], layers_to_transform=[1])
    read(place, only, target_modules=['q_proj'], layers_to_transform=1)
    read(place, only, target_modules=r'.*layers\.1\.self_attn\.q_proj')
    read(place, only, target_modules=['1.self_attn.q_proj'])
    read(place, only, target_modules=['q_proj'], exclude_modules=r'.*layers\.(0|2)\..*')
    read(place, only)  # no target_modules
    read(place, only, target_modules=r'(?!.*vision).*q_proj')  # an unsupported pattern
    assert 'layers.2.' in message(place, only, target_modules=['q_proj'], layers_to_transform=[1, 2])


@pytest.mark.parametrize('left_out', PROJECTOR)
def test_the_projector_has_all_its_weights_or_none(place, left_out):
    complete = pairs('q_proj') | projector()
    assert len(read(place, complete, target_modules=['q_proj']).replacements) == 6
    fields = [{}, {'modules_to_save': ['multi_modal_projector']}, {'modules_to_save': ['mm_projector']}]
    for field in fields:
        error = message(place, pairs('q_proj') | projector(left_out), target_modules=['q_proj'], **field)
        assert f'trained without an adapter: multi_modal_projector.{left_out}. ' in error


def test_modules_to_save(place):
    error = message(place, pairs('q_proj'), modules_to_save=['multi_modal_projector'])
    assert (
        'missing from the weights that were trained without an adapter: multi_modal_projector.linear_1.bias'
        in error
    )
    some = {n: w for n, w in projector().items() if 'linear_2' in n}
    assert len(read(place, pairs('q_proj') | some, modules_to_save=['linear_2']).replacements) == 2
    error = message(place, pairs('q_proj') | some, modules_to_save=['linear_1', 'linear_2'])
    assert 'multi_modal_projector.linear_1.bias, multi_modal_projector.linear_1.weight. ' in error
    assert 'language_model.lm_head.weight' in message(place, pairs('q_proj'), modules_to_save=['lm_head'])
    read(place, pairs('q_proj'), modules_to_save=['classifier', 'score'])  # of other models
    read(place, pairs('q_proj'), modules_to_save=None)


def test_the_authors_checkpoint_without_the_projector(place):
    everything = pairs(*SIZES, stem=AUTHORS)
    targets = [name.split('.')[-1] for name in SIZES]
    with pytest.warns(UserWarning, match='no non_lora_trainables.bin, in which the authors') as error:
        assert len(read(place, everything, target_modules=targets).pairs) == 21
    assert len(error) == 1
    stem = 'base_model.model.model.mm_projector.'
    names = {
        'projector_layernorm': 'clip_layernorm',
        'linear_1': 'final_linear.0',
        'linear_2': 'final_linear.2',
    }
    theirs = {
        f'{stem}{names[n.split(".")[0]]}.{n.split(".")[1]}': np.zeros(shape, np.float32)
        for n, shape in PROJECTOR.items()
    }
    write_bin(place / 'non_lora_trainables.bin', theirs)
    assert len(read(place, everything, target_modules=targets).replacements) == 6
    theirs.popitem()
    write_bin(place / 'non_lora_trainables.bin', theirs)
    assert 'trained without an adapter: multi_modal_projector.linear_2.bias' in message(place, everything)


def test_a_projector_by_itself(place):
    place.mkdir()
    stem = 'model.mm_projector.'
    theirs = {f'{stem}final_linear.0.weight': np.zeros((48, 160), np.float32)}
    write_bin(place / 'mm_projector.bin', theirs)
    with pytest.raises(
        CheckpointError, match='multi_modal_projector.linear_1.bias, .*projector_layernorm.weight'
    ):
        adapters.read_adapter(place, TINY)


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ({'r': 0}, 'r: expected a whole number from 1'),
        ({'r': 10**400}, 'r: expected a whole number from 1'),
        ({'r': float('nan')}, 'r: expected a whole number'),
        ({'r': True}, 'r: expected a whole number'),
        ({'lora_alpha': float('nan')}, 'lora_alpha: expected a positive number, found nan'),
        ({'lora_alpha': float('inf')}, 'lora_alpha: expected a positive number, found inf'),
        (
            {'lora_alpha': 10**400},
            'lora_alpha: expected a positive number, found a whole number of 401 digits',
        ),
        ({'lora_alpha': 1e300}, 'lora_alpha: expected a positive number'),
        ({'lora_alpha': '16'}, 'lora_alpha: expected a positive number'),
        ({'alpha_pattern': {'q_proj': float('nan')}}, 'alpha_pattern.q_proj: expected a positive number'),
        ({'rank_pattern': {'q_proj': 1 << 40}}, 'rank_pattern.q_proj: expected a whole number from 1'),
        ({'rank_pattern': {'(?=x)': 2}}, 'rank_pattern.*lookaround'),
        ({'rank_pattern': {f'.*{i}': 2 for i in range(40)}}, 'rank_pattern: at most 32 patterns'),
        ({'rank_pattern': {f'x{i}': 2 for i in range(5000)}}, 'rank_pattern.*at most 4000 patterns'),
        ({'target_modules': {'q_proj': 1}}, 'target_modules: expected a list of at most 4000 names'),
        ({'target_modules': ['q_proj', 3]}, 'target_modules: expected a list of at most 4000 names'),
        ({'target_modules': ['x'] * 5000}, 'target_modules: expected a list of at most 4000 names'),
        ({'modules_to_save': 'lm_head'}, 'modules_to_save: expected a list'),
        ({'modules_to_save': [['lm_head']]}, 'modules_to_save: expected a list'),
        ({'layers_to_transform': 'all'}, 'layers_to_transform: expected a whole number'),
        ({'layers_to_transform': [True]}, 'layers_to_transform: expected a whole number'),
        ({'base_model_name_or_path': '\x1b[31m' * 999, 'target_modules': ['v_proj']}, 'without the pair'),
        ({'peft_type': ['LORA']}, 'peft_type'),
        ({'bias': 'x', 'use_dora': {'deep': [[]]}}, 'use_dora'),
    ],
    ids=range(24),
)
def test_fields_of_the_config(place, fields, expected):
    with pytest.raises(CheckpointError, match=expected) as error:
        read(place, pairs('q_proj'), **fields)
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 500


def test_patterns_that_would_backtrack_forever_are_refused(place):
    evil = {'(a+)+b': 2, '(.*)*x': 2, '.*.*.*.*.*.*.*.*.*y': 2, '([a-z_.]+)+[0-9]z': 2}
    read(
        place,
        pairs(*SIZES),
        rank_pattern=evil,
        alpha_pattern=evil,
        target_modules='(.*)*(q_proj|.*.*.*)_proj',
    )


def test_a_pattern_may_match_a_tower_that_was_not_trained(place):
    read(place, pairs(*SIZES), target_modules='.*_proj')
    error = message(place, tower('out_proj'), target_modules='.*(q_proj|out_proj)')
    assert 'layers.{0-2}.self_attn.q_proj, ' in error
    assert 'layers.{0-11}.self_attn.q_proj. ' in error


def test_names_are_shown_printable(place):
    error = message(place, pairs('q_proj') | {'\x1b[31mred\u202e': np.zeros(2, np.float32)})
    assert error.isprintable()
    many = {f'a_name_that_nobody_knows.{"x" * 60}.{i}': np.zeros(1, np.float32) for i in range(300)}
    assert 'and 29' in message(place, pairs('q_proj') | many)


@pytest.mark.parametrize('matrix', ['A', 'B'])
def test_half_of_a_pair_is_refused(place, matrix):
    complete = pairs('q_proj')
    half = {name: w for name, w in complete.items() if f'lora_{matrix}' in name or '.1.' not in name}
    error = message(place, half, target_modules=['q_proj'])
    assert f'without its other half: {TEXT}1.self_attn.q_proj.lora_{matrix}.weight' in error
    assert 'without the pair' not in error


def test_views_that_would_fill_the_memory_are_refused(place):
    """A file of 100 bytes whose views would be read as a pair of a model's size."""
    from tests.convert.files import pickled, storage, tensor, write_archive

    held = storage('0', 'FloatStorage', 1)
    stem = f'{TEXT}0.self_attn.q_proj'
    program = pickled(
        {
            f'{stem}.lora_A.weight': tensor(held, (2, 48), (0, 0)),
            f'{stem}.lora_B.weight': tensor(held, (48, 2), (0, 0)),
        }
    )
    place.mkdir()
    write_archive(place / 'adapter_model.bin', program, {'0': bytes(4)})
    (place / 'adapter_config.json').write_text(json.dumps({'r': 2, 'peft_type': 'LORA'}))
    with pytest.raises(CheckpointError, match='768 bytes of weights are repeated views of 4 bytes'):
        adapters.read_adapter(place, TINY)


@pytest.mark.parametrize(
    'name',
    ['adapter_model.safetensors', 'adapter_model.bin', 'non_lora_trainables.bin', 'mm_projector.bin', CONFIG],
)
@pytest.mark.parametrize('file_type', ['a FIFO', 'a folder', 'a device'])
def test_only_regular_files_are_read(place, name, file_type):
    write_adapter(place, pairs('q_proj'))
    if name == 'adapter_model.bin':
        (place / 'adapter_model.safetensors').unlink()
    (place / name).unlink(missing_ok=True)
    if file_type == 'a FIFO':
        os.mkfifo(place / name)
    elif file_type == 'a folder':
        (place / name).mkdir()
    else:
        (place / name).symlink_to('/dev/zero')
    with pytest.raises(CheckpointError, match=f'{name}: expected a regular file, found {file_type}'):
        adapters.read_adapter(place, TINY)


@pytest.mark.parametrize(
    ('fields', 'named'),
    [
        ({'target_modules': ['q_proj']}, 'layers.{0-2}.self_attn.v_proj'),
        ({'target_modules': r'.*\.q_proj'}, 'layers.{0-2}.self_attn.v_proj'),
        (
            {'target_modules': ['q_proj', 'v_proj'], 'exclude_modules': ['v_proj']},
            'layers.{0-2}.self_attn.v_proj',
        ),
        (
            {'target_modules': ['q_proj', 'v_proj'], 'layers_to_transform': [0, 1]},
            'layers.2.self_attn.q_proj',
        ),
    ],
)
def test_pairs_that_the_config_does_not_list_give_a_warning(place, fields, named):
    with pytest.warns(UserWarning, match='which peft would not do') as error:
        assert len(read(place, pairs('q_proj', 'v_proj'), **fields).pairs) == 6
    assert len(error) == 1
    assert named in str(error[0].message)


@pytest.mark.parametrize('value', ['yes', 'false', 1])
def test_a_flag_is_true_or_false(place, value):
    assert 'use_rslora: expected true or false' in message(place, pairs('q_proj'), use_rslora=value)
