"""Prepares the model to measure and the implementations to compare, and measures line by line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vipllava_jax import ceilings, device_kinds, device_memory, loading, placement
from vipllava_jax.arrays import flat
from vipllava_jax.benchmark import report, timing
from vipllava_jax.benchmark.measure import Ours
from vipllava_jax.benchmark.subject import PRESETS, Subject, random_params, silent
from vipllava_jax.benchmark.timing import OURS, Line, Result
from vipllava_jax.ceilings import Ceilings
from vipllava_jax.config import Attention, Config
from vipllava_jax.mesh_text import mesh_text
from vipllava_jax.model.params import abstract
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.sharding import make_mesh
from vipllava_jax.weight_options import WeightOptions

ON_CPU = dict(  # takes at most a minute
    preset='tiny', batches=(1, 8), contexts=(704,), dtype='float32', requests=32
)
ON_ACCELERATOR = dict(
    preset='7b', batches=(1, 8, 32, 128), contexts=(704, 1500), dtype='bfloat16', requests=256
)
NO_QUANTIZED_PEER = '--peer transformers: cannot use quantized weights; leave out --quantize or --peer'

Show = Callable[[str], None]


def default(option: str) -> Any:
    """The default of an option on this device."""
    return (ON_CPU if jax.default_backend() == 'cpu' else ON_ACCELERATOR)[option]


def find_model(source: str | None, preset: str | None) -> tuple[Path | None, Config]:
    """The folder of the model to measure, or None for random weights, and its config."""
    if source is None:
        return None, PRESETS[preset or default('preset')]
    folder = loading.locate(source)
    return folder, loading.open(folder).cfg


def find_mesh(
    mesh: Mapping[str, int] | str | None,
    folder: Path | None,
    cfg: Config,
    options: WeightOptions,
    batch: int,
    context: int,
    show: Show,
) -> Mesh | None:
    """The mesh of the option: its axes, 'auto' to choose them, or None."""
    if mesh is None:
        return None
    if isinstance(mesh, str):
        fleet, shapes = device_kinds.fleet_of(), leaf_shapes(folder, cfg, options)
        axes, _, reason = device_memory.explain_mesh(cfg, shapes, fleet, batch=batch, context=context)
        show(f'mesh {mesh_text(axes)}: {reason}')
        return make_mesh(axes)
    return make_mesh(mesh)


def leaf_shapes(folder: Path | None, cfg: Config, options: WeightOptions) -> dict[str, Any]:
    """The shapes of the weights to measure, by path."""
    if folder is not None:
        return dict(loading.open(folder, options).leaf_shapes())
    leaves = flat(abstract(cfg, options.dtype or default('dtype')))
    return dict(quantize_leaves(leaves, options.quantize))


def load_subject(
    folder: Path | None,
    cfg: Config,
    options: WeightOptions,
    attention: Attention | None,
    show: Show,
    mesh: Mesh | None = None,
) -> Subject:
    """The model to measure, with the weights of a folder or random ones."""
    if folder is None:
        show('creating random weights')
        params = random_params(cfg, options.dtype or default('dtype'), options.quantize, mesh)
        params = placement.place(params, cfg, fuse=options.fuse, mesh=mesh)
    else:
        weights = loading.open(folder, options, mesh)
        params, cfg = weights.load(), weights.cfg
    return Subject(jax.block_until_ready(params), silent(cfg, attention), mesh)


def measure_rates(dtype: Any, mesh: Mesh | None) -> Ceilings:
    """The rates of the device or, on a mesh, those of its slowest one."""
    if mesh is None:
        return ceilings.measure_ceilings(dtype)
    found = []
    for device in mesh.local_devices:
        with jax.default_device(device):
            found.append(ceilings.measure_ceilings(dtype))
    slowest = min(rates.bandwidth for rates in found), min(rates.matmul for rates in found)
    return Ceilings(*slowest, found[0].dtype)


def implementations(subject: Subject, peer: str | None, show: Show) -> dict[str, Any]:
    """What is measured, by name, ours first: objects with a method for each line that they support."""
    found: dict[str, Any] = {OURS: Ours(subject)}
    if peer:
        if subject.quantized:
            raise ValueError(NO_QUANTIZED_PEER)
        show('copying the weights to transformers')
        from vipllava_jax.benchmark import peer as transformers

        found |= transformers.sides(subject)
    return found


def measure_lines(lines: Sequence[Line], repeats: int, rates: Ceilings, show: Show) -> Iterator[Result]:
    """Measures each line, and shows its name before and its result after."""
    for i, line in enumerate(lines, 1):
        count = f'{i}/{len(lines)}'
        show(f'{count} {line} …')
        result = timing.measure_line(line, repeats)
        show(f'{" " * len(count)} {report.sentence(result, rates)}')
        yield result
