"""Reads adapter_config.json: the rank and scale of each layer, and which weights the adapter contains."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vipllava_jax.convert.patterns import Pattern, PatternError
from vipllava_jax.files import read_json
from vipllava_jax.hugging_face import Fields
from vipllava_jax.messages import CheckpointError, brief, printable

CONFIG = 'adapter_config.json'
MAX_RANK, LARGEST_ALPHA = 1 << 16, 1e6
MAX_NAMES = 4000  # the maximum length of a list of modules or a table of patterns
MAX_PATTERNS = 32  # the maximum number of patterns that are not plain names
NAME = re.compile(r'[\w.-]*')  # a pattern that is just a name; its dots match any character
# Variants of LoRA in which a layer is not the base weight plus scale * B A.
VARIANTS = (
    'use_dora',
    'use_qalora',
    'use_bdlora',
    'lora_bias',
    'layer_replication',
    'alora_invocation_tokens',
)
# The initializations that leave the base weight unchanged.
INITS = (None, True, False, 'gaussian', 'orthogonal', 'eva')

Matches = Callable[[str], bool]


class AdapterConfig:
    """The fields of an adapter_config.json; the defaults if the file is optional and missing."""

    def __init__(self, path: Path, *, optional: bool = False):
        data = read_json(path, optional=optional)
        try:
            fields = Fields(data)
            fields.require('peft_type', 'LORA')
            for name in VARIANTS:
                fields.require(name, None, False)
            fields.require('init_lora_weights', *INITS)
            self.rank = fields.number('r', 8, minimum=1, maximum=MAX_RANK)
            self.alpha = fields.real('lora_alpha', 8, maximum=LARGEST_ALPHA)
            ranks, alphas = fields.part('rank_pattern', {}), fields.part('alpha_pattern', {})
            self.ranks = _patterns(ranks, lambda p: ranks.number(p, 1, minimum=1, maximum=MAX_RANK))
            self.alphas = _patterns(alphas, lambda p: alphas.real(p, 1, maximum=LARGEST_ALPHA))
            self.root = 0.5 if fields.flag('use_rslora') else 1
            self.targets = _modules(fields, 'target_modules')
            self.named = isinstance(fields.get('target_modules'), list)
            self.excluded = _modules(fields, 'exclude_modules')
            self.saved = _names(fields, 'modules_to_save')
            self.layers = _layers(fields)
            base = fields.get('base_model_name_or_path')
        except ValueError as error:
            raise CheckpointError(f'{path}: {error}') from None
        model = f' ({printable(base, 100)} according to {CONFIG})' if isinstance(base, str) and base else ''
        self.advice = f'. Use the model that it was trained for{model}, or train it again'

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """The rank of a layer's pair, and the factor of its product."""
        rank, alpha = (
            next((value for matches, value in patterns if matches(module)), default)
            for patterns, default in ((self.ranks, self.rank), (self.alphas, self.alpha))
        )
        return int(rank), alpha / rank**self.root

    def adapts(self, module: str) -> bool:
        """Whether the config says that the linear layer of this name has a pair."""
        if self.targets is None or not self.targets(module) or (self.excluded and self.excluded(module)):
            return False
        layer = re.search(r'\.([0-9]{1,9})\.', module)
        return self.layers is None or (layer is not None and int(layer[1]) in self.layers)


def _patterns(fields: Fields, value: Callable[[str], float]) -> list[tuple[Matches, float]]:
    """A table from patterns, which match the end of a module's name, to numbers."""
    if len(fields.data) > MAX_NAMES:
        raise fields.error('', fields.data, f'at most {MAX_NAMES} patterns')
    found: list[tuple[Matches, float]] = []
    left = MAX_PATTERNS
    for pattern in fields.data:
        if NAME.fullmatch(pattern):
            found.append((_ending(pattern), value(pattern)))
            continue
        left -= 1
        if left < 0:
            raise ValueError(f'{fields.where[:-1]}: at most {MAX_PATTERNS} patterns are supported')
        try:
            found.append((Pattern(rf'(.*\.)?({pattern})').fullmatch, value(pattern)))
        except PatternError as error:
            raise ValueError(
                f'{fields.where}{brief(pattern)}: expected a regular expression that is supported: {error}'
            ) from None
    return found


def _ending(pattern: str) -> Matches:
    """Matches modules with this name, or whose name ends with it after a dot; dots match any character."""
    name = re.compile(pattern)

    def matches(module: str) -> bool:
        start = len(module) - len(pattern)
        return bool(start >= 0 and name.fullmatch(module, start) and (start == 0 or module[start - 1] == '.'))

    return matches


def _modules(fields: Fields, name: str) -> Matches | None:
    """The modules of target_modules or exclude_modules: a list of endings of names, or one pattern.

    None for a pattern that is not supported: then it is unknown which modules have a pair.
    """
    value = fields.get(name)
    if value == 'all-linear':
        return lambda _: True
    if isinstance(value, str):
        try:
            return Pattern(value).fullmatch
        except PatternError:
            return None
    names = frozenset(_names(fields, name))
    return (lambda module: any(end in names for end in endings(module))) if names else None


def endings(module: str) -> list[str]:
    """'a.b.c' -> ['a.b.c', 'b.c', 'c']."""
    parts = module.split('.')
    return ['.'.join(parts[i:]) for i in range(len(parts))]


def _names(fields: Fields, name: str) -> list[str]:
    value: Any = fields.get(name, [])
    if not isinstance(value, list) or len(value) > MAX_NAMES or not all(isinstance(n, str) for n in value):
        raise fields.error(name, value, f'a list of at most {MAX_NAMES} names')
    return value


def _layers(fields: Fields) -> frozenset[int] | None:
    """The numbers of the adapted layers; None for all."""
    value = fields.get('layers_to_transform', [])
    if value == []:
        return None
    if isinstance(value, list) and len(value) <= MAX_NAMES and all(type(n) is int for n in value):
        return frozenset(value)
    return frozenset({fields.number('layers_to_transform', 0)})
