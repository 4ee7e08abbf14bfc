"""Matches the tensors of a PyTorch checkpoint with the leaves of a model: what a conversion will read."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vipllava_jax.config import Config
from vipllava_jax.convert.faults import describe_faults, join_layer_numbers
from vipllava_jax.convert.table import (
    BRIDGE,
    EMBED,
    HEAD,
    LAYERS,
    TEXT,
    UNUSED,
    VISION,
    VISION_LAYERS,
    Leaf,
    hub_name,
    leaves,
)
from vipllava_jax.convert.tensors import LONGEST_NAME, READABLE, Tensor, check_views
from vipllava_jax.messages import CheckpointError, brief, printable


class ConversionPlan(NamedTuple):
    """What a conversion reads: the tensor of each leaf, with a config that fits the weights."""

    cfg: Config
    pairs: tuple[tuple[Leaf, Tensor], ...]  # in the order in which the bytes lie in the files
    unused: tuple[str, ...]  # the file's names of tensors that a forward pass does not use


def match_tensors(tensors: Mapping[str, Tensor], cfg: Config, where: str) -> ConversionPlan:
    """The tensors of a checkpoint, by the names in its files, and its config -> what will be read.

    Raises CheckpointError that names all tensors that are missing, unknown, stored twice, of a wrong shape or
    of an unsupported type.
    """
    unused = [name for name in tensors if UNUSED.fullmatch(name)]
    found: dict[str, list[str]] = defaultdict(list)
    for name in tensors.keys() - set(unused):
        found[hub_name(name)].append(name)
    first = {name: tensors[origins[0]] for name, origins in found.items()}
    cfg = _corrected(first, cfg, where)
    layers = _layer_faults(found, cfg)
    expected = {leaf.name: leaf for leaf in leaves(cfg)}
    if cfg.text.tied:
        unused += found.pop(HEAD, [])
    common = expected.keys() & found.keys()
    faults = {
        **layers,
        'missing': join_layer_numbers(expected.keys() - found.keys()),
        'unknown': join_layer_numbers(name for key in found.keys() - expected.keys() for name in found[key]),
        'stored twice': [' and '.join(sorted(found[name])) for name in common if len(found[name]) > 1],
        'of another shape than the config says': [
            f'{found[name][0]} {brief(list(first[name].shape))} instead of {list(expected[name].shapes[0])}'
            for name in common
            if first[name].shape != expected[name].shapes[0]
        ],
        f'of a type other than {", ".join(READABLE)}': [
            f'{found[name][0]} ({first[name].dtype})' for name in common if first[name].dtype not in READABLE
        ],
    }
    if problems := describe_faults(faults):
        advice = _advice(found, (first[name].dtype for name in common))
        raise CheckpointError(f'{where}: its tensors and its config do not fit. {problems}{advice}')
    pairs = sorted(((expected[name], first[name]) for name in common), key=lambda pair: pair[1].place)
    check_views((tensor for _, tensor in pairs), where)
    return ConversionPlan(cfg, tuple(pairs), tuple(sorted(printable(name, LONGEST_NAME) for name in unused)))


def _layer_faults(names: Iterable[str], cfg: Config) -> dict[str, list[str]]:
    """Faults where config.json and the names of tensors disagree on the number of layers."""
    found: dict[str, set[str]] = {LAYERS: set(), VISION_LAYERS: set()}
    for name in names:
        for prefix, numbers in found.items():
            if name.startswith(prefix):
                numbers.add(name.removeprefix(prefix).partition('.')[0])
    faults = {}
    for prefix, part, expected in (
        (LAYERS, 'decoder', cfg.text.layers),
        (VISION_LAYERS, 'vision tower', cfg.vision.layers),
    ):
        held = len(found[prefix])
        if held not in (0, expected):
            faults[f'layers of the {part}'] = [f'config.json says {expected}, the files hold {held}']
    return faults


def _corrected(tensors: Mapping[str, Tensor], cfg: Config, where: str) -> Config:
    """The config, corrected by the weights: the feature layers, the projector's norm, a tied head."""
    weight = tensors.get(BRIDGE + 'linear_1.weight')
    if weight is not None and len(weight.shape) == 2:
        norm = cfg.projector_norm or BRIDGE + 'projector_layernorm.weight' in tensors
        try:
            cfg = cfg.with_projector(weight.shape[1], norm)
        except ValueError as error:
            raise CheckpointError(f'{where}: {error}') from None
    if cfg.text.tied and HEAD in tensors and tensors[HEAD] != tensors.get(EMBED):
        # a head that is stored separately is not tied, whatever the config says; as in transformers
        cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, tied=False))
    return cfg


def _advice(found: Mapping[str, list[str]], types: Iterable[str]) -> str:
    """What to do if a part of the model is missing or the weights are quantized."""
    advice = ''
    if any(re.fullmatch(r'u?int8|float[468]_\w+', dtype) for dtype in types):
        advice += '. Weights in so few bits were quantized: take the original and --quantize int8'
    if HEAD not in found and any(name.startswith(TEXT) for name in found):
        advice += (
            '. A model saved without its head cannot answer: save the whole model, or set tie_word_embeddings'
        )
    if not any(name.startswith(VISION) for name in found):
        advice += '. The vision tower is not in this checkpoint: save it together with the rest'
    return advice
