"""Writes the adapters of a model to a folder in peft's format."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from vipllava_jax import pods
from vipllava_jax.arrays import flat
from vipllava_jax.config import Config
from vipllava_jax.convert.adapter_config import CONFIG
from vipllava_jax.convert.adapters import PAIR_FILES, PREFIX, is_adapter
from vipllava_jax.convert.table import BRIDGE, TEXT, leaves, rearrange_axes, reverse_layout
from vipllava_jax.files import write_json
from vipllava_jax.folders import new_folder
from vipllava_jax.gathering import whole_leaves
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA


def save_adapter(
    folder: str | os.PathLike[str],
    params: Params,
    cfg: Config,
    *,
    projector: bool = False,
    base: str | None = None,
    overwrite: bool = False,
) -> None:
    """The decoder's adapters -> a new folder, for `read_adapter`, and for peft on transformers 4.52 or later.

    With `projector` its weights are saved too; `base` is the name of the model that the adapters are for. If
    several processes have joined, all call this: the first writes, and the others wait. Raises ValueError for
    adapters that one config cannot describe.
    """
    tensors, config = _exported(params, cfg, projector)
    size = sum(x.nbytes for x in tensors.values())
    with pods.together():
        if pods.is_first():
            with new_folder(Path(folder).expanduser(), size, is_adapter, overwrite) as new:
                save_file(tensors, new / PAIR_FILES[0], metadata={'format': 'pt'})
                write_json(new / CONFIG, {**config, 'base_model_name_or_path': base})


def _exported(params: Params, cfg: Config, projector: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of an adapter's file by peft's names, and the fields of its config."""
    table, tensors = {leaf.path: leaf for leaf in leaves(cfg)}, {}
    settings, modules = set(), set()
    for path, w in whole_leaves(_exported_leaves(params, projector)):
        row = table.get(path)
        if isinstance(w, LoRA):
            if row is None or not row.name.startswith(TEXT + 'model.layers.'):
                raise ValueError(f"{path}: only adapters of the decoder's layers can be saved")
            module = row.name.removesuffix('.weight')
            rank = w.a.shape[-1]
            tensors[_peft_name(module + '.lora_A.weight')] = np.asarray(w.a, np.float32).reshape(-1, rank).T
            tensors[_peft_name(module + '.lora_B.weight')] = np.asarray(w.b, np.float32).reshape(rank, -1).T
            settings.add((rank, w.scale, w.rate))
            modules.add('.'.join(module.split('.')[-2:]))
        elif row:
            x = np.asarray(w, np.float32)
            tensors[_peft_name(row.name)] = rearrange_axes(x, reverse_layout(row.layout), dict(row.sizes))
    if len(settings) != 1:
        found = ', '.join(f'rank {rank} scale {scale:g}' for rank, scale, _ in sorted(settings)) or 'none'
        raise ValueError(f'adapters of one rank, scale and dropout expected, found {found}')
    config = _config(*settings.pop(), modules, projector)
    return {name: np.ascontiguousarray(x) for name, x in tensors.items()}, config


def _exported_leaves(params: Params, projector: bool) -> Iterator[tuple[str, Any]]:
    """The leaves that are saved: adapters, with only the shapes of their weights, and the projector."""
    for path, w in flat(params):
        if isinstance(w, LoRA):
            yield path, LoRA(jax.ShapeDtypeStruct(w.shape, w.dtype), w.a, w.b, w.scale, w.rate)  # type: ignore[arg-type]
        elif projector and path.startswith('projector/'):
            yield path, w


def _config(rank: int, scale: float, rate: float, modules: Iterable[str], projector: bool) -> dict[str, Any]:
    """The fields of an adapter_config.json, except for the name of the base model."""
    alpha = round(scale * rank, 6)
    layers = '|'.join(sorted(modules)).replace('.', r'\.')
    return {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'r': rank,
        'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
        'lora_dropout': rate,
        'bias': 'none',
        'inference_mode': True,
        # a list of names would match the vision tower too; transformers before 4.52 lacks the inner `model`
        'target_modules': rf'.*language_model\.(model\.)?layers\.\d+\.({layers})',
        'modules_to_save': [BRIDGE.rstrip('.')] if projector else None,
    }


def _peft_name(name: str) -> str:
    """The Hub's name of a tensor -> peft's."""
    return f'{PREFIX}model.{name.replace(TEXT + "model.", TEXT, 1)}'
