"""Compares both sides of a conversion: every weight, and the logits of a forward pass."""

import math
import mmap
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vipllava_jax import checkpoint
from vipllava_jax.arrays import nested
from vipllava_jax.checkpoint import Checkpoint
from vipllava_jax.config import Config
from vipllava_jax.convert.faults import some_names
from vipllava_jax.convert.matching import ConversionPlan
from vipllava_jax.convert.shards import rearrange
from vipllava_jax.convert.tensors import read_tensor
from vipllava_jax.convert.to_flax import plan_conversion, stream
from vipllava_jax.integrity import is_finite
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params, forward
from vipllava_jax.progress_bar import Progress
from vipllava_jax.sharding import default_sharding, on_cpu

AT_ONCE = 1 << 24  # elements that are compared together
_forward: Any = jax.jit(forward, static_argnames='cfg')


class Comparison(NamedTuple):
    """The largest absolute differences between two checkpoints; infinity where only one is finite."""

    groups: dict[str, float]  # the largest difference of each group of weights, such as 'llama mlp (int8)'
    logits: float  # the largest difference of the logits for a fixed picture and prompt
    not_finite: tuple[str, ...] = ()  # weights, or 'logits', that hold NaN or infinity on either side

    @property
    def equal(self) -> bool:
        """Whether all weights that are not quantized are equal and, if none is quantized, the logits too.

        NaN and infinity count as different.
        """
        if self.not_finite:
            return False
        exact = {group: error for group, error in self.groups.items() if not group.endswith(')')}
        return not any(exact.values()) and (len(exact) < len(self.groups) or not self.logits)


def verify(source: Path, converted: Path, *, progress: Progress | None = None) -> Comparison:
    """Compares a PyTorch folder and a converted one, given in either order.

    If one vocabulary is larger, only the rows that both have are compared. The forward pass runs on one side
    after the other, each in the dtype of its weights. Raises CheckpointError if the tensors differ in name
    or shape.
    """
    if checkpoint.is_checkpoint(source) == checkpoint.is_checkpoint(converted):
        raise CheckpointError(f'{source} and {converted}: one must be converted, and the other PyTorch')
    ours, theirs = (source, converted) if checkpoint.is_checkpoint(source) else (converted, source)
    stored = checkpoint.open(ours)
    plan = plan_conversion(theirs)
    groups, not_finite = _compare_weights(stored, plan, progress)
    mine = _logits(nested(stored.stream(sharding=default_sharding())), stored.cfg)
    other = _logits(nested(stream(plan)), plan.cfg)
    shared = min(stored.cfg.text.vocab, plan.cfg.text.vocab)
    mine, other = mine[..., :shared], other[..., :shared]
    if not (is_finite(mine) and is_finite(other)):
        not_finite.append('logits')
    return Comparison(groups, difference(mine, other), tuple(not_finite))


def _compare_weights(
    ours: Checkpoint, plan: ConversionPlan, progress: Progress | None
) -> tuple[dict[str, float], list[str]]:
    """The largest difference in each group of tensors, and the paths of those with NaN or infinity."""
    pairs = {leaf.path: (leaf, tensor) for leaf, tensor in plan.pairs}
    if unmatched := pairs.keys() ^ ours.leaves.keys():
        raise CheckpointError(f'{ours.folder}: only one side has {some_names(unmatched)}')
    cpu = on_cpu()
    buffer = memoryview(mmap.mmap(-1, max(tensor.span for _, tensor in pairs.values())))
    groups: dict[str, float] = {}
    not_finite: list[str] = []
    for path, mine in ours.stream(progress=progress):
        leaf, tensor = pairs[path]
        group = _group(path)
        if isinstance(mine, Quantized):
            group += f' ({mine.dtype})'
            mine = np.asarray(jax.device_put(mine, cpu).astype(np.float32))
        uploaded = jax.device_put(read_tensor(tensor, buffer), cpu)
        other = np.asarray(rearrange(uploaded, leaf.layout, leaf.sizes, uploaded.dtype))
        if not (is_finite(mine) and is_finite(other)):
            not_finite.append(path)
        if mine.shape != other.shape:
            both = tuple(slice(min(sizes)) for sizes in zip(mine.shape, other.shape, strict=True))
            if 'V' not in leaf.layout:
                raise CheckpointError(
                    f'{ours.folder}: {path} has the shape {list(mine.shape)}, but {list(other.shape)} in '
                    f'{tensor.file}'
                )
            mine, other = mine[both], other[both]
        groups[group] = max(groups.get(group, 0.0), difference(mine, other))
    return groups, not_finite


def _group(path: str) -> str:
    """'llama/layers_3/q/w' -> 'llama attention'."""
    part, *_, module = [name for name in path.split('/') if name not in ('w', 'b')]
    weight = weight_axes(re.sub('/b$', '/w', path))  # a bias belongs to the group of its weight
    if weight.contracted:
        group = 'attention' if 'H' in weight.letters else 'mlp' if 'F' in weight.letters else module
    else:
        group = module if weight.decays else 'norms'
    return f'{part} {group}'


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference of two arrays of the same shape; 0 if they are equal bit by bit.

    Infinity if there is NaN or infinity in only one of them.
    """
    a, b = a.reshape(-1), b.reshape(-1)
    largest = 0.0
    for i in range(0, a.size, AT_ONCE):
        x, y = a[i : i + AT_ONCE], b[i : i + AT_ONCE]
        if x.dtype == y.dtype and x.tobytes() == y.tobytes():
            continue
        with np.errstate(invalid='ignore'):
            error = np.abs(x.astype(np.float32) - y.astype(np.float32)).max()
        largest = max(largest, math.inf if np.isnan(error) else float(error))
    return largest


def _logits(params: Params, cfg: Config) -> np.ndarray:
    """The logits of a fixed random picture and prompt."""
    rng = np.random.default_rng(0)
    size = cfg.vision.image_size
    words = rng.integers(3, min(cfg.text.vocab, cfg.image_token), 12)
    tokens = np.concatenate([[cfg.bos], [cfg.image_token] * cfg.vision.patches, words])[None]
    images = rng.standard_normal((1, 1, size, size, 3), np.float32)
    return np.asarray(_forward(params, tokens, images, cfg=cfg))
