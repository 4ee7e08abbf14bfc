"""The shardings of a training state and of batches on a mesh."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vipllava_jax.arrays import flat, nested
from vipllava_jax.data.examples import Examples
from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.sharding import AnyMesh, sharding
from vipllava_jax.training.parts import adapted_weight
from vipllava_jax.weight_sharding import leaf_sharding, with_divisible_groups

if TYPE_CHECKING:
    from vipllava_jax.training.step import TrainState


def state_shardings(state: 'TrainState', mesh: AnyMesh) -> 'TrainState':
    """The shardings of a state or its shapes.

    Weights, and moments of the same shape, have the shardings of the letters of the weight. The rest (the
    step, the factors of Adafactor's moments) is small, and whole on all devices.
    """
    weights = {path: (w.shape, _trainable_sharding(path, w, mesh)) for path, w in flat(state.params)}
    whole = NamedSharding(mesh, PartitionSpec())

    def moment(keys: Any, x: Any) -> NamedSharding:
        path = '/'.join(key.key for key in keys if isinstance(key, jax.tree_util.DictKey))
        shape, at = weights.get(path, (None, whole))
        return at if x.shape == shape else whole

    moments = jax.tree_util.tree_map_with_path(moment, state.optimizer)
    return state.replace(  # type: ignore[attr-defined]
        step=whole, params=nested((path, at) for path, (_, at) in weights.items()), optimizer=moments
    )


def _trainable_sharding(path: str, leaf: Any, mesh: AnyMesh) -> Any:
    """The sharding of a leaf of the trainable weights, which may be one of an adapter's pair."""
    weight = adapted_weight(path)
    if weight is None:
        return leaf_sharding(path, leaf, mesh)
    axes = weight_axes(weight)
    letters = axes.contracted + 'R' if path.endswith('/a') else 'R' + axes.output
    return sharding(letters, leaf.shape, mesh)


def put_quantized(path: str, w: Quantized, mesh: Mesh) -> Quantized:
    """A quantized weight -> the same with the sharding of its letters, and if necessary smaller groups."""
    w = with_divisible_groups(path, w, mesh)
    moved: Quantized = jax.device_put(w, leaf_sharding(path, w, mesh))
    return moved


def process_rows(count: int, mesh: Mesh | None) -> np.ndarray:
    """The indices of those of `count` rows of a micro-batch that this process's devices compute, sorted."""
    if mesh is None:
        return np.arange(count)
    at = sharding('B', (count,), mesh)
    parts = at.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in parts]))


def put_batch(batch: Examples, mesh: Mesh | None) -> Examples:
    """A batch BT, or the stacked micro-batches ABT of a step, with its rows divided over the mesh.

    The images are only those of the rows of `process_rows`; the other arrays have all rows.
    """
    if mesh is None:
        return batch
    A = 'A' * (batch.tokens.ndim - 2)
    count = batch.tokens.shape[len(A)]
    every, loaded = np.arange(count), process_rows(count, mesh)

    def put(letters: str, x: Any, rows: np.ndarray) -> jax.Array:
        """An array on the mesh, of which x has the given rows, along the axis B."""
        axis = letters.index('B')
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[axis].indices(count)
            first = int(np.searchsorted(rows, start))
            return x[(*index[:axis], slice(first, first + stop - start))]

        return jax.make_array_from_callback(shape, sharding(letters, shape, mesh), part)

    return Examples(
        put(f'{A}BT', batch.tokens, every),
        put(f'{A}BT', batch.targets, every),
        put(f'{A}BIhwc', batch.images, loaded),
        put(f'{A}B', batch.image_counts, every),
    )
