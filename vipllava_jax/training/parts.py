"""Splits params into trainable and frozen ones, and joins them."""

from collections.abc import Collection

from vipllava_jax.arrays import flat, nested
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training.recipes import LORA, PARTS

PAIR = ('a', 'b')


def split(params: Params, trains: Collection[str]) -> tuple[Params, Params]:
    """Splits params into trainable and frozen ones; of a weight with an adapter, only the pair trains.

    `trains` holds some of 'vision', 'projector', 'llama' (with embeddings and head) and 'lora' (all adapters
    of the params). Raises ValueError for another name, and for weights that cannot train.
    """
    names = (*PARTS, LORA)
    if not trains or not set(trains) <= set(names):
        raise ValueError(f'trains is {sorted(trains)}, but must be some of {", ".join(names)}')
    leaves = dict(flat(params))
    adapted = {path for path, leaf in leaves.items() if isinstance(leaf, LoRA)}
    in_parts = {path for path in leaves if in_trained_part(path, trains)}
    pairs = adapted if LORA in trains else set()
    if LORA in trains and not adapted:
        raise ValueError("'lora' trains adapters, but the weights have none: add one first")
    for path in sorted(in_parts):
        if path in adapted:
            raise ValueError(f'{path}: its part trains, but it has an adapter: merge the adapter first')
        if isinstance(leaves[path], Quantized):
            raise ValueError(f'{path}: {leaves[path].dtype} weights do not train: load them without quantize')
    trainable = {path: leaves[path] for path in in_parts}
    trainable |= {f'{path}/{name}': getattr(leaves[path], name) for path in pairs for name in PAIR}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in in_parts}
    frozen |= {path: leaves[path].replace(**dict.fromkeys(PAIR)) for path in pairs}
    return nested(sorted(trainable.items())), nested(frozen.items())


def in_trained_part(path: str, trains: Collection[str]) -> bool:
    """Whether the weight at a path belongs to one of the parts that train."""
    return path.split('/')[0] in {PARTS[name] for name in trains if name != LORA}


def adapted_weight(path: str) -> str | None:
    """The weight of the pair to which a leaf of trainable params belongs: '…/q/w/a' -> '…/q/w'; else None."""
    weight, _, name = path.rpartition('/')
    return weight if name in PAIR and weight.endswith('/w') else None


def join(trainable: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    joined = dict(frozen)
    for name, node in trainable.items():
        rest = frozen.get(name, {})
        if not isinstance(node, dict):
            joined[name] = node
        else:
            joined[name] = join(node, rest) if isinstance(rest, dict) else rest.replace(**node)
    return joined
