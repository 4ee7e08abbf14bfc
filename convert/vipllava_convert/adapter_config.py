"""What an adapter_config.json says: the rank and scale of each layer, and what the adapter is to hold."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vipllava_convert.patterns import Pattern, PatternError
from vipllava_jax.files import read_json
from vipllava_jax.hugging_face import Fields
from vipllava_jax.messages import CheckpointError, brief, printable

CONFIG = 'adapter_config.json'
MOST_RANK, LARGEST_ALPHA = 1 << 16, 1e6
MOST_NAMES = 4000  # in a list of modules or a table of patterns
MOST_PATTERNS = 32  # that are more than a name
NAME = re.compile(r'[\w.-]*')  # where a pattern has no more, a dot stands for any character
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

Matches = Callable[[str], bool]


class AdapterConfig:
    """The fields of an adapter_config.json; an optional one that is not there says nothing."""

    def __init__(self, path: Path, *, optional: bool = False):
        data = read_json(path, optional=optional)
        try:
            fields = Fields(data)
            fields.require('peft_type', 'LORA')
            for name in VARIANTS:
                fields.require(name, None, False)
            fields.require('init_lora_weights', *INITS)
            self.rank = fields.number('r', 8, least=1, most=MOST_RANK)
            self.alpha = fields.real('lora_alpha', 8, most=LARGEST_ALPHA)
            ranks, alphas = fields.part('rank_pattern', {}), fields.part('alpha_pattern', {})
            self.ranks = _patterns(ranks, lambda p: ranks.number(p, 1, least=1, most=MOST_RANK))
            self.alphas = _patterns(alphas, lambda p: alphas.real(p, 1, most=LARGEST_ALPHA))
            self.root = 0.5 if fields.flag('use_rslora') else 1
            self.targets = _modules(fields, 'target_modules')
            self.named = isinstance(fields.get('target_modules'), list)
            self.excluded = _modules(fields, 'exclude_modules')
            self.saved = _names(fields, 'modules_to_save')
            self.layers = _layers(fields)
            base = fields.get('base_model_name_or_path')
        except ValueError as error:
            raise CheckpointError(f'{path}: {error}') from None
        made = f', {printable(base, 100)} says {CONFIG},' if isinstance(base, str) and base else ''
        self.advice = f'. Give the model that it was made for{made} or train it anew'

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """The rank of a layer's pair, and what its product is multiplied by."""
        rank, alpha = (
            next((value for matches, value in patterns if matches(module)), default)
            for patterns, default in ((self.ranks, self.rank), (self.alphas, self.alpha))
        )
        return int(rank), alpha / rank**self.root

    def adapts(self, module: str) -> bool:
        """Whether a linear layer of that name is to have a pair, as far as the config says which have."""
        if self.targets is None or not self.targets(module) or (self.excluded and self.excluded(module)):
            return False
        layer = re.search(r'\.([0-9]{1,9})\.', module)
        return self.layers is None or (layer is not None and int(layer[1]) in self.layers)


def _patterns(fields: Fields, value: Callable[[str], float]) -> list[tuple[Matches, float]]:
    """An object of numbers by patterns of a module's name, or of the end of it."""
    if len(fields.data) > MOST_NAMES:
        raise fields.error('', fields.data, f'at most {MOST_NAMES} patterns')
    found: list[tuple[Matches, float]] = []
    left = MOST_PATTERNS
    for pattern in fields.data:
        if NAME.fullmatch(pattern):
            found.append((_ending(pattern), value(pattern)))
            continue
        left -= 1
        if left < 0:
            raise ValueError(f'{fields.where[:-1]}: at most {MOST_PATTERNS} patterns are supported')
        try:
            found.append((Pattern(rf'(.*\.)?({pattern})').fullmatch, value(pattern)))
        except PatternError as error:
            raise ValueError(
                f'{fields.where}{brief(pattern)}: expected a regular expression that is supported: {error}'
            ) from None
    return found


def _ending(pattern: str) -> Matches:
    """Whether a module's name is a name, or ends with it after a dot; its dots stand for any character."""
    name = re.compile(pattern)

    def matches(module: str) -> bool:
        start = len(module) - len(pattern)
        return bool(start >= 0 and name.fullmatch(module, start) and (start == 0 or module[start - 1] == '.'))

    return matches


def _modules(fields: Fields, name: str) -> Matches | None:
    """What target_modules and exclude_modules are: a list of the ends of names, or one pattern.

    None for a pattern that cannot be matched: then nothing is known of which modules there are.
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
    if not isinstance(value, list) or len(value) > MOST_NAMES or not all(isinstance(n, str) for n in value):
        raise fields.error(name, value, f'a list of at most {MOST_NAMES} names')
    return value


def _layers(fields: Fields) -> frozenset[int] | None:
    """The numbers of the layers that are adapted; None for all of them."""
    value = fields.get('layers_to_transform', [])
    if value == []:
        return None
    if isinstance(value, list) and len(value) <= MOST_NAMES and all(type(n) is int for n in value):
        return frozenset(value)
    return frozenset({fields.number('layers_to_transform', 0)})
