"""Saves and opens converted folders: params in Orbax's format, config.json and the files of the processor.

The arrays have checksums. config.json has none, because users may edit it, but it must describe the arrays.
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax import arrays, pods
from vipllava_jax.arrays import flat, nested, size
from vipllava_jax.config import Config
from vipllava_jax.files import read_bytes, write_json
from vipllava_jax.folders import check_no_other_files, new_folder
from vipllava_jax.hugging_face import read_config, to_hugging_face
from vipllava_jax.manifest import (
    MARK,
    Manifest,
    check_complete,
    join_quantized,
    join_shapes,
    read_manifest,
    split_quantized,
    write_manifest,
)
from vipllava_jax.messages import CheckpointError, listed
from vipllava_jax.progress_bar import Progress
from vipllava_jax.weight_options import weight_dtype

if TYPE_CHECKING:
    from jax.typing import DTypeLike

PARAMS = 'params'


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder was written by `save`."""
    return (folder / MARK).exists()


def check_only_model_files(folder: Path) -> None:
    """Raises CheckpointError if a folder to be replaced holds a file that `save` does not write."""
    from vipllava_jax.inputs.processor_files import PROCESSOR_FILES

    check_no_other_files(folder, (MARK, PARAMS, 'config.json', 'generation_config.json', *PROCESSOR_FILES))


def save(
    folder: Path,
    params: dict[str, Any],
    cfg: Config,
    *,
    leaves: Iterable[tuple[str, Any]] | None = None,
    files_from: Path | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Writes params, their config, and the processor's files in `files_from` to a new folder.

    If the params do not fit in memory, `params` holds their shapes, and `leaves` yields their arrays as
    (path, array), in any order; a few are in memory at a time. Arrays may be divided over a mesh. If several
    processes have joined, all call this: the first writes, and the others wait. Returns the sorted paths of
    arrays that hold infinity or NaN. Raises CheckpointError if the params do not match the config or carry an
    adapter, or if the folder cannot be written.
    """
    from vipllava_jax.gathering import whole_leaves

    shapes = _shapes_to_write(folder, params, cfg)
    stored = dict(split_quantized(shapes.items()))
    whole = whole_leaves(_with_largest_groups(flat(params) if leaves is None else leaves))
    with pods.together(), contextlib.ExitStack() as stack:
        with pods.together():  # the first process finds that the folder exists before anything is gathered
            new = new_folder(folder, size(stored), is_checkpoint, overwrite)
            target = stack.enter_context(new) if pods.is_first() else None
        with pods.together():
            try:
                written = _write(target, shapes, stored, whole, cfg, files_from) if target else {}
            finally:
                if pods.process_count() > 1:
                    deque(whole, maxlen=0)  # gathering is a program of all processes, also after an error
    not_finite_paths = sorted(path for path, each in written.items() if not each.finite)
    return (*pods.from_first(not_finite_paths),)


def _shapes_to_write(folder: Path, params: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """The shape of each leaf in a folder, by its path; CheckpointError if the params cannot be saved."""
    import jax

    from vipllava_jax.model.params import abstract
    from vipllava_jax.model.weights import LoRA

    if any(isinstance(leaf, LoRA) for _, leaf in flat(params)):
        raise CheckpointError(f'{folder}: the params have an adapter: merge it, or save it separately')
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    shapes = dict(_with_largest_groups(flat(shapes)))
    if unmatched := sorted(shapes.keys() ^ dict(flat(abstract(cfg))).keys()):
        names = f'{", ".join(unmatched[:3])}{", …" if len(unmatched) > 3 else ""}'
        raise CheckpointError(
            f'{folder}: the params do not match the config ({names}); load with fuse=False to save'
        )
    return shapes


def _write(
    folder: Path,
    shapes: dict[str, Any],
    stored: dict[str, Any],
    leaves: Iterable[tuple[str, Any]],
    cfg: Config,
    files_from: Path | None,
) -> dict[str, arrays.Written]:
    """Writes the files of a model -> the checksum of each stored array, and whether it is finite, by path."""
    written = arrays.write_arrays(folder / PARAMS, nested(stored.items()), split_quantized(leaves))
    write_json(folder / 'config.json', to_hugging_face(cfg))
    copy_files(files_from, folder)
    write_manifest(folder, shapes, stored, {path: each.checksum for path, each in written.items()})
    return written


def _with_largest_groups(leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(path, leaf or its shape) -> the same, with groups of int4 as large as without a mesh."""
    import jax
    import jax.numpy as jnp

    from vipllava_jax.model.quantized import Int4

    for path, leaf in leaves:
        new = leaf
        if isinstance(leaf, Int4) and isinstance(leaf.scale, jax.ShapeDtypeStruct):
            new = jax.eval_shape(Int4.with_largest_group, leaf)
        elif isinstance(leaf, Int4):
            new = leaf.with_largest_group()
            if new is not leaf and not jnp.array_equal(new.with_group(leaf.group).scale, leaf.scale):
                raise CheckpointError(
                    f'{path}: its scales are for groups of {leaf.group} values, but a folder has groups of '
                    f'{new.group}; quantize the weights again'
                )
        yield path, new


@dataclass(frozen=True)
class Checkpoint:
    """A converted folder whose config and manifest agree; its arrays have not been read."""

    folder: Path
    cfg: Config
    manifest: Manifest
    leaves: dict[str, Any]  # the shape and dtype of each leaf, by its path

    def shapes(self, dtype: 'DTypeLike | None' = None) -> dict[str, Any]:
        """The shape and dtype of each leaf of `stream`, by its path."""
        import jax

        types = self._types(dtype)
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, types[path]) if path in types else leaf
            for path, leaf in self.leaves.items()
        }

    def stream(
        self,
        dtype: 'DTypeLike | None' = None,
        *,
        sharding: Any = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yields every leaf as (path, array): jax.Array if a sharding is given, else numpy.

        The sharding is one for all leaves, or a dict by path. The dtype is `dtype`, or the stored one;
        quantized leaves stay quantized. A few leaves are in memory at a time.
        """
        check_complete(self.folder, self.manifest)
        done, total = 0, size(self.leaves)
        if isinstance(sharding, dict):
            sharding = dict(split_quantized(sharding.items()))
        stored = self.manifest.arrays, self._types(dtype), sharding, self.manifest.checksums
        for path, array in join_quantized(arrays.read_arrays(self.folder / PARAMS, *stored)):
            done += size(self.leaves[path])
            if progress:
                progress(done, total, path)
            yield path, array

    def _types(self, dtype: 'DTypeLike | None') -> dict[str, Any]:
        """The dtype of each leaf that changes, by its path."""
        from vipllava_jax.model.quantized import Quantized

        new = weight_dtype(dtype)
        return {path: new for path, leaf in self.leaves.items() if new and not isinstance(leaf, Quantized)}


def open(folder: Path) -> Checkpoint:
    """Reads the config and the manifest of a converted folder; raises CheckpointError if they disagree."""
    from vipllava_jax.model.params import abstract

    cfg, manifest = read_config(folder), read_manifest(folder)
    leaves = join_shapes(folder, manifest.arrays)
    if cfg.text.layers + cfg.vision.layers > len(leaves):  # before allocating anything per layer
        raise CheckpointError(
            f'{folder}: config.json has {cfg.text.layers} and {cfg.vision.layers} layers, but {MARK} lists '
            f'{len(leaves)} weights; copy both again'
        )
    expected = {(path, leaf.shape) for path, leaf in flat(abstract(cfg))}
    found = {(path, leaf.shape) for path, leaf in leaves.items()}
    if unmatched := sorted({path for path, _ in expected ^ found}):
        raise CheckpointError(
            f'{folder}: {MARK} and config.json do not agree on {listed(unmatched, 5)}; convert it again'
        )
    return Checkpoint(folder, cfg, manifest, leaves)


def restore(
    folder: Path, *, dtype: 'DTypeLike | None' = None, progress: Progress | None = None
) -> tuple[dict[str, Any], Config]:
    """Loads a converted folder: its params on the device, in `dtype` or the stored dtype, and its config."""
    from vipllava_jax.sharding import default_sharding

    stored = open(folder)
    return nested(stored.stream(dtype, sharding=default_sharding(), progress=progress)), stored.cfg


def copy_files(source: Path | None, target: Path) -> None:
    """Copies generation_config.json and the files of the processor to another folder, if they exist."""
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.inputs.processor_files import PROCESSOR_FILES

    if source is None:
        return
    from vipllava_jax.inputs.tokenizer_json import MAX_BYTES  # the largest of the files

    names = ['generation_config.json']
    try:
        Processor.load(source).save(target)
    except (ValueError, OSError, ImportError):  # incomplete: copy the files that exist
        names += PROCESSOR_FILES
    for name in names:
        if (source / name).exists():
            (target / name).write_bytes(read_bytes(source / name, MAX_BYTES))
