"""Finds tensors that an adapter's config lists and its files lack, as after an incomplete copy."""

from collections.abc import Iterable, Mapping

from vipllava_jax.convert.adapter_config import AdapterConfig, endings
from vipllava_jax.convert.table import BRIDGE, LAYERS, TEXT, VISION_LAYERS, Leaf

# The prefixes of each stack's layers in the models of transformers 4 and 5, and of the authors.
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
    """The modules that should have a pair according to the config, and have none.

    `linear` are the linear layers of the model; `held` maps the names of those with a pair to their names in
    the files. A vision tower without any pair is accepted: the config's patterns may match its modules
    although they were not trained, because the authors add the tower after the adapter.
    """
    stacks: dict[str, str] = {}
    for name, module in held.items():
        stack, rest = _split_stack(name.removesuffix('.weight'))
        if module.endswith(rest):
            stacks.setdefault(stack, module.removesuffix(rest))
    missing, elsewhere = {}, set()
    for leaf in linear:
        stack, rest = _split_stack(leaf.name.removesuffix('.weight'))
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
    """The weights that should be in the files, replacing the model's own, and are not.

    These are the weights of all modules in modules_to_save, and all weights of the projector if the files
    have any of them: the authors' training saves all of them.
    """
    present = set(held)
    saved = set(config.saved)
    expected = {name for name in table if any(end in saved for end in _modules_of(name))}
    projector = {name for name in table if name.startswith(BRIDGE)}
    if (present & projector) - expected:
        expected |= projector
    return sorted(expected - present)


def _modules_of(name: str) -> Iterable[str]:
    """The names by which modules_to_save may list the modules that contain a weight."""
    parts = name.split('.')
    for i in range(1, len(parts)):
        yield from endings('.'.join(parts[:i]))
    if name.startswith(BRIDGE):
        yield 'mm_projector'


def _split_stack(module: str) -> tuple[str, str]:
    """A module's name on the Hub -> the prefix of its stack, and the rest."""
    stack = next((prefix for prefix in TREES if module.startswith(prefix)), '')
    return stack, module.removeprefix(stack)
