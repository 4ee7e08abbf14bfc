"""Loads a model from a folder or the Hugging Face Hub onto a device or a mesh."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax import checkpoint, pods
from vipllava_jax.arrays import nested
from vipllava_jax.config import Config
from vipllava_jax.convert import torch_files
from vipllava_jax.files import read_json
from vipllava_jax.folders import listing
from vipllava_jax.generation.hugging_face_settings import settings_from_hugging_face
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.hub import HUB_NAME, from_hub, has_weights
from vipllava_jax.messages import CheckpointError, brief
from vipllava_jax.progress_bar import Progress, shown_progress
from vipllava_jax.weight_options import WeightOptions

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.typing import DTypeLike

    from vipllava_jax.convert.adapters import Adapter
    from vipllava_jax.inputs.processor import Processor

DEMO = 'demo'  # the name of the model that is included in the package
AUTO = 'auto'  # the mesh that `device_memory.choose_mesh` chooses


def load(
    source: str | os.PathLike[str],
    *,
    dtype: 'DTypeLike | None' = None,
    quantize: str | None = None,
    fuse: bool | None = None,
    adapter: str | os.PathLike[str] | None = None,
    merge: bool = True,
    mesh: 'Mesh | Mapping[str, int] | str | None' = None,
    progress: Progress | bool | None = None,
) -> Model:
    """A folder (PyTorch or converted) or a name on the Hub ('organisation/name@revision') -> the model.

    `dtype` is the dtype of the weights (None: the stored one). Weights go to the device as they are read.
    `quantize`, 'int8' or 'int4', quantizes the large weights of the decoder on the device; the vision tower,
    projector, embeddings, norms and a head tied to the embeddings are not quantized. Quantized weights cannot
    be trained. `fuse` joins weights that have the same input, which is faster on a GPU and the default there.
    `adapter` is the folder of an adapter, in the format of peft, of the authors of ViP-LLaVA, or of this
    package. It is merged into the weights, but kept separate for weights that are stored quantized, or for
    all weights if `merge` is False. `mesh` divides the weights over several devices: a mesh of `make_mesh`,
    its axes, such as {'tensor': 4, 'data': 2}, or 'auto', which chooses them by the memory of the devices.
    `progress` is called with the bytes done, the total number of bytes and the name of the last tensor; None
    shows a progress bar in a terminal or a notebook, False shows none.

    Raises ValueError, with a message of one line; CheckpointError, a subclass, if the weights are at fault.
    """
    # invalid options are refused before a download starts
    options = WeightOptions(dtype=dtype, quantize=quantize, adapter=adapter, merge=merge, fuse=fuse)
    mesh = _resolve_mesh(mesh)
    folder = locate(source)
    processor = _processor(folder)
    weights = open(folder, options, mesh)
    if processor is not None:
        processor = processor.for_model(weights.cfg)
    settings = default_settings(folder)
    return Model(weights.load(progress), weights.cfg, processor, settings)


@dataclass(frozen=True)
class Source:
    """The weights of a folder, to be loaded with some options.

    Everything is checked except the values of the arrays. The headers of the files have been read once, and
    are not read again.
    """

    folder: Path
    cfg: Config
    options: WeightOptions
    adapter: 'Adapter | None'
    stored_shapes: Callable[..., dict[str, Any]]  # (dtype) -> the shape of each stored leaf by its path
    stored_leaves: Callable[..., Iterable[tuple[str, Any]]]  # the same as arrays
    mesh: 'Mesh | None' = None  # None: the first local device

    def leaf_shapes(self) -> Iterable[tuple[str, Any]]:
        """The path and shape of each weight, with the options but before it is placed on the device."""
        return self._with_options(self.stored_shapes(self.options.dtype_to_read).items())

    def leaves(self, progress: Progress | None = None) -> Iterable[tuple[str, Any]]:
        """The path and array of each weight as it is read; a few are in memory besides those in use."""
        from vipllava_jax.weight_sharding import leaf_shardings

        dtype = self.options.dtype_to_read
        sharding = leaf_shardings(self.stored_shapes(dtype), self.mesh)
        stored = self.stored_leaves(dtype, sharding=sharding, progress=progress)
        return self._with_options(stored, self._joined)

    def shapes(self) -> dict[str, Any]:
        """The shapes of the params that `load` returns, with their shardings.

        Programs can be compiled for these shapes while the weights are read.
        """
        from vipllava_jax import placement

        return placement.place_shapes(
            nested(self.leaf_shapes()), self.cfg, fuse=self.options.fuse, mesh=self.mesh
        )

    def load(self, progress: Progress | bool | None = None) -> dict[str, Any]:
        """The params on the device, in the layout that is fastest there; `progress` as in `loading.load`.

        If the mesh is that of several processes, all of them call this, and an error in one is raised in all.
        """
        from vipllava_jax import placement

        if progress is None and not pods.is_first():
            progress = False
        with (
            pods.together() if self._joined else contextlib.nullcontext(),
            shown_progress(progress, f'loading {self.folder.name}') as show,
        ):
            params = nested(self.leaves(show))
            return placement.place(params, self.cfg, fuse=self.options.fuse, mesh=self.mesh)

    @property
    def _joined(self) -> bool:
        return self.mesh is not None and self.mesh.is_multi_process

    def _with_options(self, leaves: Iterable[tuple[str, Any]], joined: bool = False) -> Iterable[Any]:
        from vipllava_jax.convert.adapted import with_options

        return with_options(leaves, self.options, self.adapter, joined=joined)


def open(
    folder: Path,
    options: WeightOptions | None = None,
    mesh: 'Mesh | Mapping[str, int] | str | None' = None,
) -> Source:
    """Checks a folder's weights and the options, without reading arrays; raises the errors of `load`."""
    options, resolved = options or WeightOptions(), _resolve_mesh(mesh)
    if checkpoint.is_checkpoint(folder):
        stored = checkpoint.open(folder)
        cfg, shapes = stored.cfg, stored.shapes
        leaves: Callable[..., Any] = stored.stream
    else:
        from vipllava_jax.convert import to_flax

        plan = to_flax.plan_conversion(folder)
        cfg, shapes = plan.cfg, partial(to_flax.shapes, plan)
        leaves = partial(to_flax.stream, plan)
    adapter = None
    if options.adapter:
        from vipllava_jax.convert import adapters

        adapter = adapters.read_adapter(options.adapter, cfg)
    if resolved != AUTO:
        return Source(folder, cfg, options, adapter, shapes, leaves, resolved)
    from vipllava_jax.device_memory import choose_mesh
    from vipllava_jax.sharding import make_mesh

    source = Source(folder, cfg, options, adapter, shapes, leaves)
    axes = choose_mesh(cfg, dict(source.leaf_shapes()))
    return dataclasses.replace(source, mesh=make_mesh(axes)) if math.prod(axes.values()) > 1 else source


def _resolve_mesh(mesh: Any) -> Any:
    """The argument `mesh` of `load` -> a mesh, None, or AUTO; ValueError or TypeError for another value."""
    from jax.sharding import AxisType, Mesh

    from vipllava_jax.mesh_text import check_axis
    from vipllava_jax.sharding import make_mesh

    if mesh is None or mesh == AUTO:
        return mesh
    if isinstance(mesh, Mapping):
        return make_mesh(mesh)
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f'mesh is {brief(mesh)}: expected a mesh, its axes, such as {{"tensor": 4}}, or "auto"'
        )
    for name, type in zip(mesh.axis_names, mesh.axis_types, strict=True):
        check_axis(name)
        if type != AxisType.Auto:
            raise ValueError(f'mesh: the axis {name} is {type.name}, not Auto; use vipllava_jax.make_mesh')
    if not mesh.local_devices:
        raise ValueError('mesh: none of its devices belongs to this process; use those of all processes')
    return mesh


def locate(source: str | os.PathLike[str]) -> Path:
    """The local folder that holds the weights of a source, which is downloaded if it is a name on the Hub.

    'demo' is the model that is included in the package; a folder of that name is given as './demo'. Raises
    CheckpointError if there is no such folder or it has no weights, and TypeError for another type.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f'the model is {brief(source)}: expected a folder, or a name on the Hugging Face Hub')
    if source == '':
        raise CheckpointError('the name of the model is empty: give a folder or a name on the Hub')
    if str(source) == DEMO:
        return bundled()
    try:
        folder = Path(source).expanduser()
        if folder.is_file():
            raise CheckpointError(
                f'{folder}: a file; give the folder that holds the weights and their config.json'
            )
        exists = folder.is_dir()
    except (OSError, RuntimeError) as error:  # the name is too long, no permission, unknown user in ~user
        raise CheckpointError(f'{source}: {getattr(error, "strerror", None) or error}') from None
    if not exists:
        if not HUB_NAME.fullmatch(str(source)):
            raise CheckpointError(
                f'{folder}: no such folder, and not a name on the Hugging Face Hub (organisation/name)'
            )
        folder = from_hub(str(source))
    if not has_weights(folder):
        names = ', '.join((checkpoint.MARK, *torch_files.SINGLE, *torch_files.INDEXED))
        raise CheckpointError(f'{folder}: no weights: looked for {names}, found {listing(folder)}')
    return folder


def bundled() -> Path:
    """The folder of the demo model."""
    return Path(__file__).parent / 'demo' / 'model'


def default_settings(folder: Path) -> GenerationSettings:
    """The settings in a folder's generation_config.json, or the defaults; raises CheckpointError."""
    content = read_json(folder / 'generation_config.json', optional=True)
    try:
        return settings_from_hugging_face(content, str(folder))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _processor(folder: Path) -> 'Processor | None':
    if not any((folder / name).exists() for name in ('tokenizer.json', 'tokenizer.model')):
        return None
    from vipllava_jax.inputs.processor import Processor

    return Processor.load(folder)
