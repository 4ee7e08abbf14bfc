"""Loads a model from a folder or the Hugging Face Hub onto the device."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vipllava_jax import checkpoint
from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import Config
from vipllava_jax.convert import torch_files
from vipllava_jax.folders import listing
from vipllava_jax.generation.model import Model
from vipllava_jax.hub import HUB_NAME, from_hub, has_weights
from vipllava_jax.messages import CheckpointError

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from vipllava_jax.inputs.processor import Processor

DEMO = 'demo'  # the name of the model that is included in the package


def load(
    source: str | os.PathLike[str],
    *,
    dtype: 'DTypeLike | None' = None,
    quantize: str | None = None,
    fuse: bool | None = None,
    adapter: str | os.PathLike[str] | None = None,
    merge: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> Model:
    """A folder (PyTorch or converted) or a name on the Hub ('organisation/name@revision') -> the model.

    `dtype` is the dtype of the weights (None: the stored one). Weights go to the device as they are read.
    `quantize`, 'int8' or 'int4', quantizes the large weights of the decoder on the device; the vision tower,
    projector, embeddings, norms and a head tied to the embeddings are not quantized. Quantized weights cannot
    be trained. `fuse` joins weights that have the same input, which is faster on a GPU and the default there.
    `adapter` is the folder of an adapter, in the format of peft, of the authors of ViP-LLaVA, or of this
    package. It is merged into the weights, but kept separate for weights that are stored quantized, or for
    all weights if `merge` is False. `progress` is called with the bytes done, the total number of bytes and
    the name of the last tensor.

    Raises ValueError, with a message of one line; CheckpointError, a subclass, if the weights are at fault.
    """
    dtype = checkpoint.weight_type(dtype)  # raises before a download starts
    folder = locate(source)
    processor = _processor(folder)
    kind: dict[str, Any] = dict(dtype=dtype, quantize=quantize, adapter=adapter, merge=merge)
    found = leaves(folder, **kind)
    if processor is not None:
        processor = processor.for_model(found.cfg)
    params = arrange(nested(found.stream(progress=progress)), found.cfg, fuse=fuse)
    return Model(params, found.cfg, processor)


def weights(
    folder: Path,
    *,
    fuse: bool | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **kind: Any,
) -> tuple[dict[str, Any], Config]:
    """The params and config of a folder; the options are those of `load`."""
    found = leaves(folder, **kind)
    return arrange(nested(found.stream(progress=progress)), found.cfg, fuse=fuse), found.cfg


def abstract(folder: Path, *, fuse: bool | None = None, **kind: Any) -> tuple[dict[str, Any], Config]:
    """The shapes of the params that `weights` returns, with their shardings, and the config.

    Programs can be compiled for these shapes while the weights are read. Raises the errors of `load`.
    """
    import jax

    here, found = _here(), leaves(folder, **kind)

    def fused(layer: dict[str, Any]) -> dict[str, Any]:
        from vipllava_jax.model import llama

        return _on_device(jax.eval_shape(llama.fuse, layer), here)

    params = _on_device(nested(found.shapes()), here)
    return _arranged(params, found.cfg, fuse, fused, _on_device), found.cfg


class Leaves(NamedTuple):
    """The config of a folder, and functions that return its weights as (path, leaf): shapes or arrays."""

    cfg: Config
    shapes: Callable[[], Iterable[tuple[str, Any]]]
    stream: Callable[..., Iterable[tuple[str, Any]]]  # onto the device; takes `progress`, as `load` does


def leaves(
    folder: Path,
    *,
    dtype: 'DTypeLike | None' = None,
    quantize: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    merge: bool = True,
) -> Leaves:
    """The weights of a folder with the options of `load`, before `arrange`.

    Checks everything except the values of the arrays and the adapter.
    """
    from vipllava_jax.convert.adapted import prepared

    stored = None if quantize or adapter else dtype
    shapes: Callable[..., dict[str, Any]]
    stream: Callable[..., Iterable[tuple[str, Any]]]
    if checkpoint.is_checkpoint(folder):
        cfg, _ = checkpoint.describe(folder)
        shapes = partial(checkpoint.shapes, folder, stored)
        stream = partial(checkpoint.stream, folder, stored, sharding=_here())
    else:
        from vipllava_jax.convert import to_flax

        plan = to_flax.plan(folder)
        cfg = plan.cfg
        shapes, stream = partial(to_flax.shapes, plan, stored), partial(to_flax.stream, plan, stored)
    prepare = partial(prepared, cfg=cfg, dtype=dtype, quantize=quantize, adapter=adapter, merge=merge)
    return Leaves(cfg, lambda: prepare(shapes().items()), lambda **options: prepare(stream(**options)))


def arrange(params: dict[str, Any], cfg: Config, *, fuse: bool | None = None) -> dict[str, Any]:
    """Params in the layout of a checkpoint -> in the fastest one for the device; modifies them in place."""
    import jax

    from vipllava_jax.model import llama

    return _arranged(params, cfg, fuse, jax.jit(llama.fuse), jax.device_put)


def _arranged(
    params: dict[str, Any],
    cfg: Config,
    fuse: bool | None,
    fused: Callable[..., Any],
    put: Callable[..., Any],
) -> dict[str, Any]:
    """Params or their shapes in the layout of the device: `fused` joins weights, `put` sets their formats.

    The formats, which only a TPU needs, are those that the compiler prefers. At most one layer is in memory
    twice.
    """
    from vipllava_jax.model.weights import LoRA

    llama = params['llama']
    if _on('gpu') if fuse is None else fuse:
        for name in [name for name in llama if name.startswith('layers_')]:
            llama[name] = fused(llama.pop(name))
    # the formats are those of one layer, but the layers may have different adapters
    if _on('tpu') and not any(isinstance(w, LoRA) for _, w in flat(llama)):
        from vipllava_jax.generation.decoding import formats

        for name, wanted in formats(llama, cfg).items():
            llama[name] = put(llama.pop(name), wanted)
    return params


def _here() -> Any:
    """The sharding of the weights: the first local device."""
    import jax

    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _on_device(shapes: Any, places: Any) -> Any:
    """`jax.device_put` for shapes: sets their shardings or formats."""
    import jax

    if not isinstance(places, dict):
        places = jax.tree.map(lambda _: places, shapes)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, places)


def _on(backend: str) -> bool:
    import jax

    return jax.default_backend() == backend


def locate(source: str | os.PathLike[str]) -> Path:
    """The local folder that holds the weights of a source, which is downloaded if it is a name on the Hub.

    'demo' is the model that is included in the package; a folder of that name is given as './demo'. Raises
    CheckpointError if there is no such folder or it has no weights.
    """
    if str(source) == DEMO:
        return bundled()
    try:
        folder = Path(source).expanduser()
        if folder.is_file():
            raise CheckpointError(
                f'{folder}: a file; give the folder that holds the weights and their config.json'
            )
        found = folder.is_dir()
    except (OSError, RuntimeError) as error:  # the name is too long, no permission, unknown user in ~user
        raise CheckpointError(f'{source}: {getattr(error, "strerror", None) or error}') from None
    if not found:
        if not HUB_NAME.fullmatch(str(source)):
            raise CheckpointError(
                f'{folder}: no such folder, and not a name on the Hugging Face Hub (organisation/name)'
            )
        folder = from_hub(str(source))
    if not has_weights(folder):
        wanted = ', '.join((checkpoint.MARK, *torch_files.SINGLE, *torch_files.INDEXED))
        raise CheckpointError(f'{folder}: no weights: looked for {wanted}, found {listing(folder)}')
    return folder


def bundled() -> Path:
    """The folder of the demo model."""
    return Path(__file__).parent / 'demo' / 'model'


def _processor(folder: Path) -> 'Processor | None':
    if not any((folder / name).exists() for name in ('tokenizer.json', 'tokenizer.model')):
        return None
    from vipllava_jax.inputs.processor import Processor

    return Processor.load(folder)
