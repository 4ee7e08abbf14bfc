"""Every layout of PyTorch checkpoints is converted to ours bit by bit."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests import peer
from tests.conftest import TINY
from tests.convert.layouts import FIRST, LLAVA, PREFIXES, TIED, VIP
from vipllava_jax import checkpoint
from vipllava_jax.arrays import flat
from vipllava_jax.config import Config
from vipllava_jax.convert.table import leaves
from vipllava_jax.convert.to_flax import convert

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
    """A PyTorch tensor as a numpy array with the same bits."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def in_layout(name: str, layout: str, cfg: Config) -> str:
    """A name in transformers' model in memory -> the name in a layout."""
    for ours, theirs in zip(PREFIXES[MEMORY][:3], PREFIXES[layout][:3], strict=True):
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            if layout == AUTHORS and 'projector' in ours:
                part, parameter = rest.split('.')
                rest = f'{(VIP if cfg.projector_norm else FIRST)[part]}.{parameter}'
            return theirs + rest
    return PREFIXES[layout][3] + name


def write_torch(folder: Path, state: dict, file_format: str, shards: int) -> None:
    """Writes a state dict to a folder in a PyTorch file format, without a config."""
    import torch
    from safetensors.torch import save_file

    stem, end = ('model', '.safetensors') if file_format == 'safetensors' else ('pytorch_model', '.bin')
    names = sorted(state)
    homes = {}
    for i in range(shards):
        file = stem + (f'-{i + 1:05}-of-{shards:05}' if shards > 1 else '') + end
        part = {name: state[name] for name in names[i::shards]}
        homes |= dict.fromkeys(part, file)
        if file_format == 'safetensors':
            save_file(part, folder / file, metadata={'format': 'pt'})
        else:
            torch.save(part, folder / file)
    if shards > 1:
        index = {'metadata': {'total_size': 0}, 'weight_map': homes}
        (folder / f'{stem}{end}.index.json').write_text(json.dumps(index))


def write_config(folder: Path, theirs, layout: str, cfg: Config) -> None:
    """Writes the config.json of a layout's version; the Hub's first version is wrong about the features."""
    config = json.loads(theirs.config.to_json_string(use_diff=False))
    if layout == HUB and cfg.projector_norm:
        config |= {'vision_feature_layer': -2, 'projector_layernorm': False}
    if layout == AUTHORS:
        config = {
            **config['text_config'],
            'model_type': 'llava',
            'mm_hidden_size': cfg.sizes['M'] if cfg.projector_norm else cfg.vision.width,
            'mm_projector_type': 'mlp2x_gelu',
            'mm_vision_select_layer': -2,
            'vision_config': config['vision_config'],
            'image_token_index': cfg.image_token,
        }
    (folder / 'config.json').write_text(json.dumps(config))


def expected(state: dict, cfg: Config) -> dict[str, np.ndarray]:
    """Our leaves, without the table's layouts: matrices are transposed, then reshaped as the model needs."""
    arrays = {}
    hub = {in_layout(name, HUB, cfg): x for name, x in state.items()}
    for leaf in leaves(cfg):
        x = array(hub[leaf.name])
        if x.ndim == 4:
            x = x.transpose(2, 3, 1, 0)
        elif x.ndim == 2 and leaf.path not in ('clip/positions', 'llama/embed/w'):
            x = x.T
        arrays[leaf.path] = x.reshape(leaf.shapes[1])
    return arrays


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case[0]}, {case[2]} {case[1]} {case[3]}')
def test_every_layout_is_converted_without_rounding(case, tmp_path):
    import torch

    layout, file_format, shards, dtype, cfg = case
    theirs = peer.model(cfg).to(getattr(torch, dtype))
    state = theirs.state_dict()
    renamed = {in_layout(name, layout, cfg): x for name, x in state.items()}
    unused = set()
    if file_format == 'safetensors' and cfg.text.tied:
        del renamed[in_layout('lm_head.weight', layout, cfg)]
    elif cfg.text.tied:
        unused.add(in_layout('lm_head.weight', layout, cfg))
    if layout == AUTHORS:
        renamed |= {f'model.layers.{i}.self_attn.rotary_emb.inv_freq': torch.ones(4) for i in range(3)}
        unused |= {name for name in renamed if 'inv_freq' in name}
    if file_format == 'bin':  # as when a view and a transposed matrix are saved
        name = in_layout('model.language_model.layers.0.mlp.up_proj.weight', layout, cfg)
        renamed[name] = renamed[name].t().contiguous().t()
    source, target = tmp_path / 'source', tmp_path / 'target'
    source.mkdir()
    write_torch(source, renamed, file_format, shards)
    write_config(source, theirs, layout, cfg)
    report = convert(source, target)
    assert set(report.unused) == unused
    params, found = checkpoint.restore(target)
    assert dataclasses.replace(found, attention=None, pad=cfg.pad, bos=cfg.bos) == cfg
    ours = dict(flat(params))
    expected_arrays = expected(state, cfg)
    assert ours.keys() == expected_arrays.keys()
    for path, x in expected_arrays.items():
        assert ours[path].dtype == x.dtype, path
        assert np.asarray(ours[path]).tobytes() == x.tobytes(), path
