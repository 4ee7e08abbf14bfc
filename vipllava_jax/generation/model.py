"""A loaded model, and its short description for a prompt or a notebook."""

import html
from collections import Counter
from typing import Any, NamedTuple

from vipllava_jax.arrays import flat, size
from vipllava_jax.config import Config
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.messages import amount, printable


class Model(NamedTuple):
    """A model's weights, config, processor and default settings of generation."""

    params: dict[str, Any]
    cfg: Config
    processor: Any  # a Processor, or None if the folder has no tokenizer
    settings: GenerationSettings = GenerationSettings()

    def __repr__(self) -> str:
        """The sizes in a few lines; a tuple's own repr would print every weight."""
        lines = [f'  {name}: {text}' for name, text in _description(self).items()]
        return '\n'.join(['Model(', *lines, ')'])

    def _repr_html_(self) -> str:
        """The same as a table, for a notebook."""
        rows = [
            f'<tr><th style="text-align: left">{name}</th>'
            f'<td style="text-align: left">{html.escape(text)}</td></tr>'
            for name, text in _description(self).items()
        ]
        return f'<table>{"".join(rows)}</table>'


def _description(model: Model) -> dict[str, str]:
    text, vision = model.cfg.text, model.cfg.vision
    return {
        'weights': _weights(model.params),
        'decoder': f'{text.layers} layers of width {text.width}, {text.vocab} tokens in the vocabulary, '
        f'{text.context} in the context',
        'vision': f'{vision.layers} layers of width {vision.width}, images of {vision.image_size} x '
        f'{vision.image_size} pixels, {vision.patches} tokens each',
        'processor': 'none: the folder has no tokenizer' if model.processor is None else 'loaded',
        'device': _device(model.params),
    }


def _weights(params: dict[str, Any]) -> str:
    """'7.06 billion parameters, 7.49 GB: int8 93 %, bfloat16 7 %'."""
    from vipllava_jax.model.weights import LoRA

    if not params:
        return 'none'
    counts: Counter[str] = Counter()
    adapted = 0
    for _, weight in flat(params):
        counts[str(weight.dtype)] += weight.size
        adapted += isinstance(weight, LoRA)
    total = counts.total()
    if total >= 1e8:
        count = f'{total / 1e9:.2f} billion'
    else:
        count = f'{total / 1e6:.2f} million' if total >= 1e6 else f'{total:,}'
    shares = [f'{dtype} {part / total:.0%}' for dtype, part in counts.most_common()]
    dtypes = ', '.join(shares if len(counts) > 1 else counts)
    adapter = f', with an adapter on {adapted} weights' if adapted else ''
    return f'{count} parameters, {amount(size(params))}: {dtypes}{adapter}'


def _device(params: dict[str, Any]) -> str:
    """The names of the devices that hold the weights, each with its number if there are several."""
    import jax

    leaves = jax.tree.leaves(params)
    devices = {device for leaf in leaves if isinstance(leaf, jax.Array) for device in leaf.devices()}
    if not devices:
        return 'none: the weights are not on a device'
    counts = Counter(device.device_kind for device in devices)
    return printable(', '.join(f'{n} x {name}' if n > 1 else name for name, n in counts.items()))
