"""Adapters in files: peft's format, read and written, and the authors' own beside it."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from vipllava_convert.faults import ranges
from vipllava_convert.table import (
    BRIDGE,
    TEXT,
    UNUSED,
    Leaf,
    arrange,
    axes,
    canonical,
    leaves,
    reverse,
)
from vipllava_convert.tensors import READABLE, Tensor
from vipllava_convert.torch_files import read_file
from vipllava_jax.arrays import flat
from vipllava_jax.config import Config
from vipllava_jax.folders import CheckpointError, beside, listing, read_json, write_json
from vipllava_jax.hugging_face import Fields
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA

CONFIG, PAIRS = 'adapter_config.json', ('adapter_model.safetensors', 'adapter_model.bin')
WHOLE = ('non_lora_trainables.bin', 'mm_projector.bin')  # the authors', of what trained without an adapter
PREFIX = 'base_model.model.'
HALF = re.compile(r'(?P<module>.+)\.lora_(?P<half>[AB])(\.\w+)?\.weight')
# With one of these a pair means something else than scale * B A beside the weight as the base has it,
VARIANTS = (
    'use_dora',
    'use_qalora',
    'use_bdlora',
    'lora_bias',
    'layer_replication',
    'alora_invocation_tokens',
)
# and with any way to begin but these that base is changed.
INITS = (None, True, False, 'gaussian', 'orthogonal', 'eva')


class Pair(NamedTuple):
    """What a linear layer has beside its weight."""

    leaf: Leaf
    a: Tensor  # [R, in]
    b: Tensor  # [out, R]
    scale: float


class Adapter(NamedTuple):
    """Where everything lies that an adapter has for a model, by the paths of its params."""

    pairs: Mapping[str, Pair]
    whole: Mapping[str, tuple[Leaf, Tensor]]  # weights to be had instead of the model's own


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return any((folder / name).exists() for name in PAIRS + WHOLE)


def read(source: str | os.PathLike[str], cfg: Config) -> Adapter:
    """An adapter's folder -> what it has for a model of that config, checked but for the bytes themselves.

    Raises CheckpointError with everything that does not fit, by name.
    """
    folder = Path(source).expanduser()
    if not is_adapter(folder):
        found = listing(folder) if folder.is_dir() else 'no such folder'
        raise CheckpointError(f'{folder}: no adapter: looked for {", ".join(PAIRS + WHOLE)}, found {found}')
    pairs = [name for name in PAIRS if (folder / name).exists()][:1]
    told = Told(folder / CONFIG, read_json(folder / CONFIG, optional=not pairs))
    table = {leaf.name: leaf for leaf in leaves(cfg)}
    parts: dict[Leaf, dict[str, tuple[str, Tensor]]] = defaultdict(dict)
    faults: dict[str, list[str]] = defaultdict(list)
    for file in [*pairs, *(name for name in WHOLE if (folder / name).exists())]:
        for name, tensor in read_file(folder / file).items():
            module, half = _module(name)
            leaf = table.get(canonical(module + '.weight' if half else module))
            if leaf and (summed(leaf) or not half):
                if half in parts[leaf]:
                    faults['stored twice'].append(name)
                parts[leaf][half] = name, tensor
            elif not UNUSED.fullmatch(module):
                faults['of nothing that the model has'].append(name)
    for leaf, halves in parts.items():
        _check(leaf, halves, told, faults)
    if any(faults.values()):
        listed = '; '.join(f'{kind}: {", ".join(sorted(ranges(n)))}' for kind, n in faults.items() if n)
        raise CheckpointError(f'{folder}: not an adapter of this model. {listed}{told.advice}')
    return Adapter(
        {
            leaf.path: Pair(leaf, halves['A'][1], halves['B'][1], told.of(halves['A'][0])[1])
            for leaf, halves in parts.items()
            if 'A' in halves
        },
        {leaf.path: (leaf, halves[''][1]) for leaf, halves in parts.items() if '' in halves},
    )


def _module(name: str) -> tuple[str, str]:
    """'base_model.model.….q_proj.lora_A.weight' -> '….q_proj', 'A'; another name without the prefix, ''."""
    inner = name.removeprefix(PREFIX).replace('.base_layer.', '.')  # a weight that is whole below its pair
    match = HALF.fullmatch(inner)
    return (match['module'], match['half']) if match else (inner, '')


def summed(leaf: Leaf) -> int:
    """The axes of ours that a linear layer's weight sums over; 0 for what is no such weight."""
    theirs, ours = (axes(side) for side in leaf.layout.split('->'))
    return len(theirs[1]) if len(theirs) == 2 and ''.join(ours) == theirs[1] + theirs[0] else 0


def _check(
    leaf: Leaf, halves: Mapping[str, tuple[str, Tensor]], told: 'Told', faults: dict[str, list[str]]
) -> None:
    """Adds what is wrong with what a file has for a leaf."""
    if ('A' in halves) != ('B' in halves):
        faults['without its other half'] += [name for half, (name, _) in halves.items() if half]
    for half, (name, tensor) in halves.items():
        wanted = leaf.shapes[0]
        if half:
            rank, _ = told.of(name)
            wanted = (rank, wanted[1]) if half == 'A' else (wanted[0], rank)
        if tensor.shape != wanted:
            shapes = f'{name} {list(tensor.shape)} instead of {list(wanted)}'
            faults[f'of another shape than the model and {CONFIG} say'].append(shapes)
        if tensor.dtype not in READABLE:
            faults[f'of a type other than {", ".join(READABLE)}'].append(f'{name} ({tensor.dtype})')


class Told:
    """What an adapter_config.json says: of every module its rank and its scale."""

    def __init__(self, path: Path, data: dict[str, Any]):
        try:
            fields = Fields(data)
            fields.require('peft_type', 'LORA')
            for name in VARIANTS:
                fields.require(name, None, False)
            fields.require('init_lora_weights', *INITS)
            self.rank, self.alpha = fields.number('r', 8), fields.real('lora_alpha', 8)
            self.ranks, self.alphas = (_patterns(fields, name) for name in ('rank_pattern', 'alpha_pattern'))
            self.root = 0.5 if fields.get('use_rslora') else 1
            base = fields.get('base_model_name_or_path')
        except ValueError as error:
            raise CheckpointError(f'{path}: {error}') from None
        made = f', {base} says {CONFIG},' if base else ''
        self.advice = f'. Give the model that it was made for{made} or train it anew'

    def of(self, name: str) -> tuple[int, float]:
        """The rank and the scale of the layer whose half has that name."""
        module, _ = _module(name)
        rank, alpha = (
            next((n for pattern, n in patterns if pattern.fullmatch(module)), default)
            for patterns, default in ((self.ranks, self.rank), (self.alphas, self.alpha))
        )
        return int(rank), alpha / max(rank, 1) ** self.root


def _patterns(fields: Fields, name: str) -> list[tuple[re.Pattern[str], float]]:
    """An object of numbers by patterns of a module's name, or of the end of it."""
    part = fields.part(name, {})
    try:
        return [(re.compile(rf'(.*\.)?({p})'), part.real(p, 1)) for p in part.data]
    except re.error as error:
        raise part.error(str(error.pattern), str(error), 'a regular expression') from None


def save(
    folder: str | os.PathLike[str],
    params: Params,
    cfg: Config,
    *,
    projector: bool = False,
    base: str | None = None,
    overwrite: bool = False,
) -> None:
    """The decoder's adapters -> a new folder, for `read`, and for peft on transformers 4.52 or later.

    With `projector` that is saved beside them, whole; `base` is the name of the model they are for. Raises
    ValueError for adapters that one config cannot describe.
    """
    table, tensors = {leaf.path: leaf for leaf in leaves(cfg)}, {}
    kinds, modules = set(), set()
    for path, w in flat(params):
        row = table.get(path)
        if isinstance(w, LoRA):
            if row is None or not row.name.startswith(TEXT + 'model.layers.'):
                raise ValueError(f"{path}: only adapters of the decoder's layers can be saved")
            module = row.name.removesuffix('.weight')
            rank = w.a.shape[-1]
            tensors[_named(module + '.lora_A.weight')] = np.asarray(w.a, np.float32).reshape(-1, rank).T
            tensors[_named(module + '.lora_B.weight')] = np.asarray(w.b, np.float32).reshape(rank, -1).T
            kinds.add((rank, w.scale, w.rate))
            modules.add('.'.join(module.split('.')[-2:]))
        elif projector and row and row.name.startswith(BRIDGE):
            x = np.asarray(w, np.float32)
            tensors[_named(row.name)] = arrange(x, reverse(row.layout), dict(row.sizes))
    if len(kinds) != 1:
        told = ', '.join(f'rank {rank} scale {scale:g}' for rank, scale, _ in sorted(kinds)) or 'none'
        raise ValueError(f'adapters of one rank, scale and dropout expected, found {told}')
    [(rank, scale, rate)] = kinds
    alpha = round(scale * rank, 6)
    layers = '|'.join(sorted(modules)).replace('.', r'\.')
    config = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base,
        'r': rank,
        'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
        'lora_dropout': rate,
        'bias': 'none',
        'inference_mode': True,
        # a list of names would be the vision tower's, too; before transformers 4.52 `model` stood behind
        'target_modules': rf'.*language_model\.(model\.)?layers\.\d+\.({layers})',
        'modules_to_save': [BRIDGE.rstrip('.')] if projector else None,
    }
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    with beside(
        Path(folder).expanduser(), sum(x.nbytes for x in tensors.values()), is_adapter, overwrite
    ) as new:
        save_file(tensors, new / PAIRS[0], metadata={'format': 'pt'})
        write_json(new / CONFIG, config)


def _named(name: str) -> str:
    """The Hub's name of a tensor -> peft's."""
    return f'{PREFIX}model.{name.replace(TEXT + "model.", TEXT, 1)}'
