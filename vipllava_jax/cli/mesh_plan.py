"""What `vipllava info --mesh` shows: where the weights of a model lie, and how much memory they take."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax.device_kinds import DeviceMemory, Fleet, fleet_of, gib
from vipllava_jax.mesh_text import mesh_text
from vipllava_jax.weight_options import WeightOptions

if TYPE_CHECKING:
    from vipllava_jax.config import Config
    from vipllava_jax.device_memory import MemoryPlan
    from vipllava_jax.sharding import AnyMesh
    from vipllava_jax.training.memory import TrainingMemory

SMALL = 0.004  # of the bytes of a device: smaller groups of weights are shown together


@dataclass(frozen=True)
class Question:
    """What is asked about a mesh, as the options of the command give it."""

    mesh: Mapping[str, int] | str
    batch: int
    context: int | None
    memory: DeviceMemory | None
    devices: int | None
    train: str | None
    weights: WeightOptions


@dataclass(frozen=True)
class Group:
    """Weights that a mesh divides in the same way."""

    part: str
    names: tuple[str, ...]
    letters: str
    divided: str  # 'N / tensor 4', or why the weights are whole
    bytes: int  # of one device


@dataclass(frozen=True)
class Layout:
    """The answer: the mesh, the memory of a device, and where the weights lie."""

    axes: dict[str, int]
    reason: str  # of the choice; '' if the axes were given
    present: int | None  # the devices of this computer; None if the plan is for others
    batch: int
    context: int
    inference: 'MemoryPlan'
    training: 'TrainingMemory | None'
    groups: tuple[Group, ...]

    def record(self) -> dict[str, Any]:
        """The layout for --json; sizes are bytes of one device."""
        plans = {'inference': self.inference, 'training': self.training}
        return {
            'axes': self.axes,
            'reason': self.reason,
            'batch': self.batch,
            'context': self.context,
            **{
                name: {**asdict(plan), 'total': plan.total, 'fits': plan.fits}
                for name, plan in plans.items()
                if plan is not None
            },
            'weights': [asdict(group) for group in self.groups],
        }


def lay_out(folder: Path, question: Question) -> Layout:
    """Where the weights of a folder lie on a mesh, from the headers of its files."""
    from vipllava_jax import device_memory, loading

    weights = loading.open(folder, question.weights)
    cfg, shapes = weights.cfg, dict(weights.leaf_shapes())
    context = question.context or cfg.text.context
    if context > cfg.text.context:
        raise ValueError(f'--context {context}: the model has a context of {cfg.text.context}')
    reason, axes, fleet = '', question.mesh, find_fleet(question)
    if isinstance(axes, str):
        choice = device_memory.explain_mesh(cfg, shapes, fleet, batch=question.batch, context=context)
        axes, reason = choice.axes, choice.reason
    mesh = device_memory.abstract_mesh(axes)
    plan = device_memory.plan_memory(
        cfg, shapes, mesh, fleet.memory, batch=question.batch, context=context, platform=fleet.platform
    )
    training = question.train and plan_recipe(question.train, cfg, shapes, mesh, fleet, question)
    groups = tuple(group_weights(shapes, mesh))
    present = None if question.memory else fleet_of().count
    return Layout(dict(axes), reason, present, question.batch, context, plan, training or None, groups)


def find_fleet(question: Question) -> Fleet:
    """The devices to plan for: those of this computer, unless the options describe others."""
    count = None
    if not isinstance(question.mesh, str):
        count = math.prod(question.mesh.values())
        if question.devices not in (None, count):
            raise ValueError(f'--devices {question.devices}: {mesh_text(question.mesh)} has {count} devices')
    if question.memory is not None:
        count = question.devices or count
        if count is None:
            raise ValueError('--mesh auto with --memory: give the number of --devices too')
        return Fleet(count, question.memory.bytes, count, question.memory.platform)
    found = fleet_of()
    count = question.devices or count or found.count
    return Fleet(count, found.memory, min(count, found.per_host), found.platform)


def plan_recipe(
    name: str,
    cfg: 'Config',
    shapes: dict[str, Any],
    mesh: 'AnyMesh',
    fleet: Fleet,
    question: Question,
) -> 'TrainingMemory':
    """The memory of a training run with the settings of a recipe."""
    from vipllava_jax.training.memory import plan_training
    from vipllava_jax.training.settings_file import read_settings

    settings = read_settings(
        recipe=name,
        model='model',
        data=('rows',),
        output='run',
        dtype=str(question.weights.dtype) if question.weights.dtype else None,
        quantize=question.weights.quantize,
    )
    return plan_training(cfg, shapes, settings, mesh, fleet.memory, fleet.platform)


def group_weights(shapes: Mapping[str, Any], mesh: 'AnyMesh') -> Iterator[Group]:
    """The weights by part, letters and division, the largest first; small ones together at the end."""
    from vipllava_jax.device_memory import leaf_bytes
    from vipllava_jax.model.params import weight_axes

    groups: dict[tuple[str, str, str], tuple[dict[str, None], list[int]]] = {}
    for path, leaf in shapes.items():
        axes, names = weight_axes(path), path.split('/')
        key = names[0], axes.letters, division(axes, leaf.shape, mesh)
        found, sizes = groups.setdefault(key, ({}, []))
        found[names[2] if names[1].startswith('layers_') else names[1]] = None
        sizes.append(leaf_bytes(path, leaf, mesh))
    total = sum(sum(sizes) for _, sizes in groups.values())
    rest: list[int] = []
    by_size = sorted(groups.items(), key=lambda item: -sum(item[1][1]))
    for (part, letters, divided), (found, sizes) in by_size:
        if sum(sizes) < SMALL * total:
            rest += sizes
        else:
            yield Group(part, tuple(found), letters, divided, sum(sizes))
    if rest:
        yield Group('others', (f'{len(rest)} small ones',), '', 'norms, biases and the like', sum(rest))


def division(axes: Any, shape: tuple[int, ...], mesh: 'AnyMesh') -> str:
    """How a mesh divides a weight: 'N / tensor 4', or why it is whole."""
    from vipllava_jax.sharding import RULES, spec

    parts = spec(axes.divisible, shape, mesh)
    divided, hindered, missing = [], [], []
    for letter, size, part in zip(axes.letters, shape, (*parts, *[None] * len(shape)), strict=False):
        names = part if isinstance(part, tuple) else (part,) if part else ()
        divided += [f'{letter} / {name} {mesh.shape[name]}' for name in names]
        for name in RULES.get(letter, ()):
            parts_of_axis = mesh.shape.get(name, 1)
            if letter in axes.indexed:
                hindered.append(f'{letter} is looked up by id')
            elif parts_of_axis == 1:
                missing.append(name)
            elif size % parts_of_axis:
                hindered.append(f'{parts_of_axis} does not divide {letter} {size}')
    if divided:
        return ', '.join(divided)
    if not hindered and missing:
        hindered = [f'only {" and ".join(dict.fromkeys(missing))} would divide it']
    return f'whole: {hindered[0]}' if hindered else 'whole'


def show(layout: Layout) -> Iterator[str]:
    """The layout as lines of at most 80 columns."""
    devices = math.prod(layout.axes.values())
    plan = layout.inference
    of = f' of {gib(plan.memory)}' if plan.memory else ''
    yield f'mesh {mesh_text(layout.axes)}: {devices} device{"s" * (devices > 1)}{of}'
    if layout.present is not None and layout.present < devices:
        yield f'  this computer has {layout.present}: the plan is for more of the same kind'
    if layout.reason:
        yield from wrapped(f'chosen because {layout.reason}')
    rows = -(-layout.batch // (layout.axes.get('data', 1) * layout.axes.get('fsdp', 1)))
    yield 'inference, for each device'
    yield line('weights', plan.weights, '')
    yield line('cache', plan.cache, f'{rows} of {layout.batch} rows, {layout.context:,} tokens')
    gathered = ', with the weights gathered' if layout.axes.get('fsdp', 1) > 1 else ''
    yield line('working memory', plan.working, f'an estimate{gathered}')
    yield line('together', plan.total, verdict(plan))
    if layout.training is not None:
        trained = layout.training
        yield 'training, for each device'
        yield line('trainable weights', trained.trainable, '')
        yield line('optimizer', trained.moments, '')
        yield line('frozen weights', trained.frozen, '')
        yield line('gradients', trained.gradients, 'and weights in the dtype of the step')
        yield line('working memory', trained.working, 'an estimate')
        yield line('together', trained.total, verdict(trained))
    if devices == 1:
        return
    if all(size == 1 for name, size in layout.axes.items() if name != 'data'):
        yield 'weights: all of them are on each device, because data divides the rows only'
        return
    yield f'{"weights":<24} {"letters":<7} {"per device":>10}  divided'
    for group in layout.groups:
        name = f'{group.part}: {", ".join(group.names)}'
        yield f'  {shortened(name, 22):<22} {group.letters:<7} {gib(group.bytes):>10}  {group.divided}'


def verdict(plan: 'MemoryPlan | TrainingMemory') -> str:
    """Whether a plan fits, and by how much."""
    if plan.memory is None:
        return 'the memory of the device is not known: give --memory'
    left = plan.memory - plan.total
    if plan.fits:
        return f'fits, {gib(left)} are free'
    return f'does not fit, {gib(-left)} too much' if left < 0 else f'too tight: only {gib(left)} are free'


def line(name: str, size: int, note: str) -> str:
    return f'  {name:<22} {gib(size):>11}  {note}'.rstrip()


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f'{text[: width - 1]}…'


def wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 78, initial_indent='  ', subsequent_indent='  ')
