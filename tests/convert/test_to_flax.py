"""PyTorch's folders become ours bit by bit, or nothing becomes of them."""

import dataclasses
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from vipllava_convert.table import leaves
from vipllava_convert.to_flax import convert, plan, stream

from tests import peer
from tests.conftest import TINY
from tests.convert.test_table import FIRST, LLAVA, PREFIXES, TIED, VIP
from vipllava_jax import checkpoint, folders
from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import Config
from vipllava_jax.folders import CheckpointError

MHA = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, kv_heads=6))
HUB, FIVE, MEMORY, FOUR, AUTHORS, FRONT, BEHIND = PREFIXES
CASES = [  # layout, kind of file, shards, type, model
    (HUB, 'safetensors', 1, 'float32', TINY),
    (HUB, 'bin', 3, 'float16', MHA),
    (HUB, 'safetensors', 3, 'float16', LLAVA),
    (FIVE, 'safetensors', 3, 'bfloat16', MHA),
    (FIVE, 'bin', 1, 'float32', TIED),
    (MEMORY, 'bin', 1, 'bfloat16', TINY),
    (MEMORY, 'safetensors', 1, 'float32', TIED),
    (FOUR, 'safetensors', 2, 'float16', TINY),
    (AUTHORS, 'bin', 2, 'bfloat16', MHA),
    (AUTHORS, 'bin', 3, 'float16', LLAVA),
    (FRONT, 'safetensors', 1, 'bfloat16', TINY),
    (BEHIND, 'bin', 2, 'float32', TINY),
]


def array(tensor) -> np.ndarray:
    """A tensor of PyTorch as numpy's, bit by bit."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def in_layout(name: str, layout: str, cfg: Config) -> str:
    """A name of transformers' model in memory -> the one in a layout."""
    for ours, theirs in zip(PREFIXES[MEMORY][:3], PREFIXES[layout][:3], strict=True):
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            if layout == AUTHORS and 'projector' in ours:
                part, kind = rest.split('.')
                rest = f'{(VIP if cfg.projector_norm else FIRST)[part]}.{kind}'
            return theirs + rest
    return PREFIXES[layout][3] + name


def write_torch(folder: Path, state: dict, kind: str, shards: int) -> None:
    """A state dict in a folder of PyTorch's files, its config left to others."""
    import torch
    from safetensors.torch import save_file

    stem, end = ('model', '.safetensors') if kind == 'safetensors' else ('pytorch_model', '.bin')
    names = sorted(state)
    homes = {}
    for i in range(shards):
        file = stem + (f'-{i + 1:05}-of-{shards:05}' if shards > 1 else '') + end
        part = {name: state[name] for name in names[i::shards]}
        homes |= dict.fromkeys(part, file)
        if kind == 'safetensors':
            save_file(part, folder / file, metadata={'format': 'pt'})
        else:
            torch.save(part, folder / file)
    if shards > 1:
        index = {'metadata': {'total_size': 0}, 'weight_map': homes}
        (folder / f'{stem}{end}.index.json').write_text(json.dumps(index))


def write_config(folder: Path, theirs, layout: str, cfg: Config) -> None:
    """The config.json of a layout's days; the one of the first days on the Hub lies about the features."""
    said = json.loads(theirs.config.to_json_string(use_diff=False))
    if layout == HUB and cfg.projector_norm:
        said |= {'vision_feature_layer': -2, 'projector_layernorm': False}
    if layout == AUTHORS:
        said = {
            **said['text_config'],
            'model_type': 'llava',
            'mm_hidden_size': cfg.sizes['M'] if cfg.projector_norm else cfg.vision.width,
            'mm_projector_type': 'mlp2x_gelu',
            'mm_vision_select_layer': -2,
            'vision_config': said['vision_config'],
            'image_token_index': cfg.image_token,
        }
    (folder / 'config.json').write_text(json.dumps(said))


def expected(state: dict, cfg: Config) -> dict[str, np.ndarray]:
    """Our leaves, told without the table's layouts: a matrix is transposed, then shaped as the model says."""
    told = {}
    hub = {in_layout(name, HUB, cfg): x for name, x in state.items()}
    for leaf in leaves(cfg):
        x = array(hub[leaf.name])
        if x.ndim == 4:
            x = x.transpose(2, 3, 1, 0)
        elif x.ndim == 2 and leaf.path not in ('clip/positions', 'llama/embed/w'):
            x = x.T
        told[leaf.path] = x.reshape(leaf.shapes[1])
    return told


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case[0]}, {case[2]} {case[1]} {case[3]}')
def test_every_layout_bit_by_bit(case, tmp_path):
    import torch

    layout, kind, shards, dtype, cfg = case
    theirs = peer.model(cfg).to(getattr(torch, dtype))
    state = theirs.state_dict()
    renamed = {in_layout(name, layout, cfg): x for name, x in state.items()}
    unused = set()
    if kind == 'safetensors' and cfg.text.tied:
        del renamed[in_layout('lm_head.weight', layout, cfg)]
    elif cfg.text.tied:
        unused.add(in_layout('lm_head.weight', layout, cfg))
    if layout == AUTHORS:
        renamed |= {f'model.layers.{i}.self_attn.rotary_emb.inv_freq': torch.ones(4) for i in range(3)}
        unused |= {name for name in renamed if 'inv_freq' in name}
    if kind == 'bin':  # as a save of a view, and of a transposed matrix
        name = in_layout('model.language_model.layers.0.mlp.up_proj.weight', layout, cfg)
        renamed[name] = renamed[name].t().contiguous().t()
    source, target = tmp_path / 'source', tmp_path / 'target'
    source.mkdir()
    write_torch(source, renamed, kind, shards)
    write_config(source, theirs, layout, cfg)
    report = convert(source, target)
    assert set(report.unused) == unused
    params, found = checkpoint.restore(target)
    assert dataclasses.replace(found, attention=None, pad=cfg.pad, bos=cfg.bos) == cfg
    ours = dict(flat(params))
    wanted = expected(state, cfg)
    assert ours.keys() == wanted.keys()
    for path, x in wanted.items():
        assert ours[path].dtype == x.dtype, path
        assert np.asarray(ours[path]).tobytes() == x.tobytes(), path


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def same(a: Path, b: Path) -> bool:
    """Whether two folders of ours hold the same."""
    x, y = dict(checkpoint.stream(a)), dict(checkpoint.stream(b))
    return x.keys() == y.keys() and all(x[path].tobytes() == y[path].tobytes() for path in x)


def test_one_self_contained_folder(source, folder, tmp_path):
    seen = []
    report = convert(source, tmp_path / 'new' / 'model', progress=lambda *told: seen.append(told))
    assert same(tmp_path / 'new' / 'model', folder)
    kept = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / 'new' / 'model').iterdir()} == kept
    assert 'tokenizer.json' in kept
    assert [told[0] for told in seen] == sorted(told[0] for told in seen)
    assert seen[-1][:2] == (report.size, report.size)
    assert len(seen) == report.tensors == len(list(leaves(checkpoint.read_config(folder))))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_to_another_type(source, tmp_path, dtype):
    convert(source, tmp_path / 'model', dtype=dtype)
    exact = dict(stream(plan(source)))
    for path, x in checkpoint.stream(tmp_path / 'model'):
        assert x.dtype == dtype
        assert x.tobytes() == np.asarray(exact[path]).astype(x.dtype).tobytes(), path


def test_no_type_but_floats(source, tmp_path):
    with pytest.raises(CheckpointError, match='int8: not a type of weights, only float32, float16, bfloat16'):
        convert(source, tmp_path / 'model', dtype='int8')


def test_places_that_are_taken(source, folder, tmp_path):
    (tmp_path / 'letters').mkdir()
    (tmp_path / 'letters' / 'from grandmother').touch()
    (tmp_path / 'file').touch()
    for target, told in (
        (source, 'is, or lies in, or holds'),
        (source / 'inside', 'is, or lies in, or holds'),
        (source.parent, 'is, or lies in, or holds'),
        (tmp_path / 'letters', 'exists; choose another place'),
        (tmp_path / 'file', 'exists; choose another place'),
    ):
        with pytest.raises(CheckpointError, match=told):
            convert(source, target)
    for name in ('letters', 'file'):
        with pytest.raises(CheckpointError, match='exists, and is not a model that we wrote'):
            convert(source, tmp_path / name, overwrite=True)
    assert (tmp_path / 'letters' / 'from grandmother').exists()


def test_an_empty_place_is_free_and_a_model_can_be_replaced(source, folder, tmp_path):
    (tmp_path / 'model').mkdir()
    convert(source, tmp_path / 'model')
    with pytest.raises(CheckpointError, match='exists'):
        convert(source, tmp_path / 'model', dtype='float16')
    convert(source, tmp_path / 'model', dtype='float16', overwrite=True)
    assert {x.dtype.name for _, x in checkpoint.stream(tmp_path / 'model')} == {'float16'}
    assert [path.name for path in tmp_path.iterdir()] == ['model']


def test_a_shard_that_ends_early_leaves_nothing(source, tmp_path):
    broken = shutil.copytree(source, tmp_path / 'broken')
    shard = sorted(broken.glob('*-of-*'))[-1]
    whole = plan(broken)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f'{shard}: truncated'):
        convert(broken, tmp_path / 'model')
    with pytest.raises(CheckpointError, match=f'{shard}: became shorter while it was read'):
        checkpoint.save(tmp_path / 'model', _shapes(whole), whole.cfg, leaves=stream(whole))
    assert [path.name for path in tmp_path.iterdir()] == ['broken']


def _shapes(what) -> dict:
    import jax

    shapes = ((leaf.path, jax.ShapeDtypeStruct(leaf.shapes[1], 'float32')) for leaf, _ in what.pairs)
    return nested(shapes)


def test_a_disk_that_is_too_small(source, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(folders.shutil, 'disk_usage', lambda path: free)
    size = sum(tensor.nbytes for _, tensor in plan(source).pairs)
    told = f'model: takes {size / 1e6:.2f} MB, {(size - 300_000) / 1e6:.2f} MB more than the disk has free'
    with pytest.raises(CheckpointError, match=told):
        convert(source, tmp_path / 'model')
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, sys
from pathlib import Path
from vipllava_convert.to_flax import convert
from vipllava_convert.to_torch import export
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for work, source in ((convert, sys.argv[1]), (export, sys.argv[2])):
    try:
        work(Path(source), Path(sys.argv[3]))
    except ValueError as error:
        print(error)
"""


def child(code: str, *args: object, **settings) -> subprocess.Popen:
    """Python with our packages, in a process of its own."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        '-c',
        f'import sys; sys.path[:0] = {[str(root), str(root / "convert")]}\n{code}',
    ]
    return subprocess.Popen([*command, *map(str, args)], stdout=subprocess.PIPE, text=True, **settings)


def test_a_write_that_fails_half_way(source, folder, tmp_path):
    """No file may grow beyond 50 kB, which Orbax below and our own writer both run into."""
    with child(LIMITED, source, folder, tmp_path / 'model', stderr=subprocess.PIPE) as process:
        out, noise = process.communicate(timeout=60)
    lines = out.splitlines()
    assert len(lines) == 2, noise
    for line in lines:
        assert line.startswith(f'{tmp_path}/')
        assert 'cannot be written: ' in line
        assert 'File too large' in line
    assert not noise
    assert not list(tmp_path.iterdir())


KILLED = """
import sys
from pathlib import Path
from vipllava_convert.to_flax import convert
convert(*map(Path, sys.argv[1:]), progress=lambda done, total, name: print(done, total, flush=True))
print('done', flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_there_is_nothing_or_all_of_it(source, folder, tmp_path):
    before = contents(source)
    chance = random.Random(0)
    model, finished = tmp_path / 'model', 0
    for part in (0.0, 0.5, 0.9, 1.0, 1.0, 1.0):
        with child(KILLED, source, model) as process:
            for line in process.stdout:
                if line == 'done\n' or int(line.split()[0]) >= part * int(line.split()[1]):
                    break
            time.sleep(chance.uniform(0, 0.2) if part == 1 else chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        if model.exists():
            assert same(model, folder)
            finished += 1
            shutil.rmtree(model)
        assert contents(source) == before
    assert finished < 6
    convert(source, model)
    assert same(model, folder)
    assert [path.name for path in tmp_path.iterdir()] == ['model']
