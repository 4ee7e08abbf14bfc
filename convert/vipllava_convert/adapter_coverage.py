"""What an adapter's config promises and its files lack: tensors that training made and a copy lost."""

from collections.abc import Iterable, Mapping

from vipllava_convert.adapter_config import AdapterConfig, endings
from vipllava_convert.table import BRIDGE, LAYERS, TEXT, VISION_LAYERS, Leaf

# What the names of a stack's layers begin with in the models of transformers 4 and 5, and of the authors.
TREES = {
    LAYERS: (LAYERS, 'model.language_model.layers.', 'model.layers.'),
    VISION_LAYERS: (
        VISION_LAYERS,
        'model.vision_tower.vision_model.encoder.layers.',
        'model.vision_tower.encoder.layers.',
        'model.vision_tower.vision_tower.vision_model.encoder.layers.',
    ),
    BRIDGE: (BRIDGE, f'model.{BRIDGE}'),
    TEXT: (TEXT, ''),
}


def missing_pairs(linear: Iterable[Leaf], held: Mapping[str, str], config: AdapterConfig) -> list[str]:
    """The modules that are to have a pair, and have none.

    `linear` are the linear layers of the model, and `held` those with a pair: the names in the files by the
    names of the leaves. A pattern, or a name that the decoder has too, may well match modules of the vision
    tower though they were not trained, as the authors add the tower later: a tower without any pair is right.
    """
    stacks: dict[str, str] = {}
    for name, module in held.items():
        stack, rest = _parted(name.removesuffix('.weight'))
        if module.endswith(rest):
            stacks.setdefault(stack, module.removesuffix(rest))
    missing, elsewhere = {}, set()
    for leaf in linear:
        stack, rest = _parted(leaf.name.removesuffix('.weight'))
        trees = (stacks[stack],) if stack in stacks else TREES.get(stack, ('',))
        adapted = next((tree + rest for tree in trees if config.adapts(tree + rest)), None)
        if adapted and leaf.name in held:
            elsewhere |= {rest.rpartition('.')[2]}
        elif adapted and leaf.name not in held:
            missing[adapted] = stack, rest.rpartition('.')[2]
    if VISION_LAYERS in stacks or not held:
        return list(missing)
    return [
        module
        for module, (stack, last) in missing.items()
        if stack != VISION_LAYERS or (config.named and last not in elsewhere)
    ]


def missing_weights(table: Mapping[str, Leaf], held: Iterable[str], config: AdapterConfig) -> list[str]:
    """The weights that are to be in the files as a whole, and are not.

    These are all of the modules in modules_to_save, and the whole projector if there is anything of it that
    modules_to_save does not name: the authors' training saves all of it.
    """
    have = set(held)
    saved = set(config.saved)
    promised = {name for name in table if any(end in saved for end in _modules_of(name))}
    projector = {name for name in table if name.startswith(BRIDGE)}
    if (have & projector) - promised:
        promised |= projector
    return sorted(promised - have)


def _modules_of(name: str) -> Iterable[str]:
    """By which names modules_to_save may mean the modules that a weight is part of."""
    parts = name.split('.')
    for i in range(1, len(parts)):
        yield from endings('.'.join(parts[:i]))
    if name.startswith(BRIDGE):
        yield 'mm_projector'


def _parted(module: str) -> tuple[str, str]:
    """A module's name on the Hub -> which stack it is of, and what follows in its name."""
    stack = next((prefix for prefix in TREES if module.startswith(prefix)), '')
    return stack, module.removeprefix(stack)
