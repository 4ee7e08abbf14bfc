"""Reads adapters in peft's format, and the authors' additional files."""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vipllava_jax.config import Config
from vipllava_jax.convert.adapter_config import CONFIG, AdapterConfig
from vipllava_jax.convert.adapter_coverage import missing_pairs, missing_weights
from vipllava_jax.convert.faults import describe_faults, join_layer_numbers
from vipllava_jax.convert.table import BRIDGE, UNUSED, Leaf, hub_name, leaves
from vipllava_jax.convert.tensors import READABLE, Tensor, check_views
from vipllava_jax.convert.torch_files import read_file
from vipllava_jax.folders import listing
from vipllava_jax.messages import CheckpointError, brief, printable

PAIR_FILES = ('adapter_model.safetensors', 'adapter_model.bin')
REPLACEMENT_FILES = (
    'non_lora_trainables.bin',
    'mm_projector.bin',
)  # the authors' files of fully trained weights
PREFIX = 'base_model.model.'
HALF = re.compile(r'(?P<module>.+)\.lora_(?P<half>[AB])(\.\w+)?\.weight')

Halves = dict[
    str, tuple[str, Tensor]
]  # name and tensor by 'A' and 'B', or by '' for a weight that replaces the model's


class Pair(NamedTuple):
    """The low-rank pair of a linear layer."""

    leaf: Leaf
    a: Tensor  # [R, in]
    b: Tensor  # [out, R]
    scale: float


class Adapter(NamedTuple):
    """Where the tensors of an adapter are in its files, by the paths of the params."""

    pairs: Mapping[str, Pair]
    replacements: Mapping[str, tuple[Leaf, Tensor]]  # weights that replace the model's own


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return any((folder / name).exists() for name in PAIR_FILES + REPLACEMENT_FILES)


def read_adapter(source: str | os.PathLike[str], cfg: Config) -> Adapter:
    """An adapter's folder -> its tensors for a model of that config, with all but their values checked.

    Raises CheckpointError that names everything that does not fit.
    """
    folder = Path(source).expanduser()
    if not is_adapter(folder):
        found = listing(folder) if folder.is_dir() else 'no such folder'
        raise CheckpointError(
            f'{folder}: no adapter: looked for {", ".join(PAIR_FILES + REPLACEMENT_FILES)}, found {found}'
        )
    files = [name for name in PAIR_FILES if (folder / name).exists()][:1]
    config = AdapterConfig(folder / CONFIG, optional=not files)
    files += [name for name in REPLACEMENT_FILES if (folder / name).exists()]
    table = {leaf.name: leaf for leaf in leaves(cfg)}
    faults: dict[str, list[str]] = defaultdict(list)
    parts = _parts(folder, files, table, faults)
    for leaf, halves in parts.items():
        _check(leaf, halves, config, faults)
    _check_coverage(parts, table, config, faults)
    if problems := describe_faults({fault: join_layer_numbers(names) for fault, names in faults.items()}):
        raise CheckpointError(f'{folder}: not an adapter of this model. {problems}{config.advice}')
    if not parts:
        raise CheckpointError(
            f'{folder}: {" and ".join(files)} hold no tensors for this model; train it again'
        )
    check_views((tensor for halves in parts.values() for _, tensor in halves.values()), str(folder))
    _warn_of_projector(folder, parts)
    _warn_of_unnamed(folder, parts, config)
    return Adapter(
        {
            leaf.path: Pair(
                leaf, halves['A'][1], halves['B'][1], config.rank_and_scale(_module(halves['A'][0])[0])[1]
            )
            for leaf, halves in parts.items()
            if 'A' in halves
        },
        {leaf.path: (leaf, halves[''][1]) for leaf, halves in parts.items() if '' in halves},
    )


def _parts(
    folder: Path, files: list[str], table: Mapping[str, Leaf], faults: dict[str, list[str]]
) -> dict[Leaf, Halves]:
    """The tensors for each leaf; adds to the faults tensors that occur twice or that fit no leaf."""
    parts: dict[Leaf, Halves] = defaultdict(dict)
    for file in files:
        for name, tensor in read_file(folder / file).items():
            module, half = _module(name)
            leaf = table.get(hub_name(module + '.weight' if half else module))
            if leaf and (leaf.is_linear or not half):
                if half in parts[leaf]:
                    faults['stored twice'].append(name)
                parts[leaf][half] = name, tensor
            elif not UNUSED.fullmatch(module):
                faults['not in the model'].append(name)
    return parts


def _check_coverage(
    parts: Mapping[Leaf, Halves],
    table: Mapping[str, Leaf],
    config: AdapterConfig,
    faults: dict[str, list[str]],
) -> None:
    """Adds to the faults what the config lists and the files lack."""
    pairs = {leaf.name: halves.get('A') or halves.get('B') for leaf, halves in parts.items()}
    held = {name: _module(found[0])[0] for name, found in pairs.items() if found}
    linear = [leaf for leaf in table.values() if leaf.is_linear]
    faults[f'without the pair that {CONFIG} says it has'] += missing_pairs(linear, held, config)
    replaced = [leaf.name for leaf, halves in parts.items() if '' in halves]
    faults['missing from the weights that were trained without an adapter'] += missing_weights(
        table, replaced, config
    )


def _warn_of_projector(folder: Path, parts: Mapping[Leaf, Halves]) -> None:
    """Warns of an adapter of the authors' training without the projector that was tuned with it."""
    names = [name for halves in parts.values() for name, _ in halves.values()]
    of_authors = any(name.startswith(f'{PREFIX}model.layers.') for name in names)
    if of_authors and not any(leaf.name.startswith(BRIDGE) for leaf in parts):
        warnings.warn(
            printable(
                f"{folder}: no {REPLACEMENT_FILES[0]}, in which the authors' training saves the projector; "
                "the model's projector is used instead"
            ),
            stacklevel=3,
        )


def _warn_of_unnamed(folder: Path, parts: Mapping[Leaf, Halves], config: AdapterConfig) -> None:
    """Warns of pairs for modules that the config does not list, which peft would not load."""
    modules = [_module(halves['A'][0])[0] for halves in parts.values() if 'A' in halves]
    unnamed = [module for module in modules if config.targets and not config.adapts(module)]
    if unnamed:
        names = join_layer_numbers(unnamed)
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        warnings.warn(
            printable(
                f'{folder}: holds pairs for modules that {CONFIG} does not name (target_modules, '
                f'layers_to_transform): {", ".join(names[:3])}{more}; they are used, which peft would not do'
            ),
            stacklevel=3,
        )


def _module(name: str) -> tuple[str, str]:
    """'base_model.model.….q_proj.lora_A.weight' -> '….q_proj', 'A'; another name without the prefix, ''."""
    inner = name.removeprefix(PREFIX).replace('.base_layer.', '.')  # peft's name of a weight that has a pair
    match = HALF.fullmatch(inner)
    return (match['module'], match['half']) if match else (inner, '')


def _check(leaf: Leaf, halves: Halves, config: AdapterConfig, faults: dict[str, list[str]]) -> None:
    """Adds to the faults those of the tensors for a leaf."""
    if ('A' in halves) != ('B' in halves):
        faults['without its other half'] += [name for half, (name, _) in halves.items() if half]
    for half, (name, tensor) in halves.items():
        expected = leaf.shapes[0]
        if half:
            rank, _ = config.rank_and_scale(_module(name)[0])
            expected = (rank, expected[1]) if half == 'A' else (expected[0], rank)
        if tensor.shape != expected:
            shapes = f'{name} {brief(list(tensor.shape))} instead of {list(expected)}'
            faults['of another shape'].append(shapes)
        if tensor.dtype not in READABLE:
            faults[f'of a type other than {", ".join(READABLE)}'].append(f'{name} ({tensor.dtype})')
