"""`vipllava info`: shows versions, devices, and the contents of a checkpoint folder."""

import contextlib
import json
import platform
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax import compilation
from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.mesh import MemorySize, mesh_option
from vipllava_jax.cli.models import pop_weight_options, weight_options
from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FOLDER
from vipllava_jax.messages import printable
from vipllava_jax.training.recipes import RECIPES
from vipllava_jax.version import __version__

if TYPE_CHECKING:
    from vipllava_jax.inputs.processor import Processor

PACKAGES = (
    *('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'libtpu', 'flax', 'orbax-checkpoint'),
    *('tokenizers', 'pillow', 'numpy', 'torch', 'transformers'),
)
LONGEST = 4096  # characters of a value, which may be a path


@click.command()
@click.option(
    '--model',
    'source',
    metavar='M',
    type=FOLDER,
    help='The checkpoint: a folder, PyTorch or converted; a name on the Hugging Face Hub; or demo.',
)
@weight_options
@mesh_option
@click.option(
    '--batch',
    metavar='N',
    type=WholeNumber(1, 2**20),
    help='With --mesh: the number of rows for which there is a cache, on all devices together.  [default: 1]',
)
@click.option(
    '--context',
    metavar='N',
    type=WholeNumber(1),
    help="With --mesh: the tokens of each row in the cache.  [default: the model's context]",
)
@click.option(
    '--train',
    metavar='RECIPE',
    type=click.Choice([*RECIPES]),
    help='With --mesh: also show what training by this recipe takes.',
)
@click.option(
    '--memory',
    metavar='SIZE|KIND',
    type=MemorySize(),
    help='With --mesh: the memory of a device, such as 16GiB, or its kind, such as v5e or H100.  [default: '
    'that of the devices of this computer]',
)
@click.option(
    '--devices',
    'count',
    metavar='N',
    type=WholeNumber(1, 2**20),
    help='With --mesh auto: the number of devices.  [default: those of this computer]',
)
@click.option('--json', 'as_json', is_flag=True, help='Print one JSON object instead of text.')
def info(source: str | None, mesh: Any, as_json: bool, **options: Any) -> None:
    """Show versions, devices and, with --model, what a checkpoint holds; no weights are loaded.

    With --mesh, it shows instead where the weights would lie on the devices of a mesh, what each device would
    hold, and whether it fits. The devices need not exist: with --memory, any computer can plan for others.

    \b
    Examples:
      vipllava info
      vipllava info --model ./vip-llava-7b
      vipllava info --model ./vip-llava-7b --mesh tensor=4,data=2 --batch 8 --context 1024
      vipllava info --model ./vip-llava-7b --mesh auto --devices 4 --memory v5e
      vipllava info --model ./vip-llava-7b --mesh fsdp=4 --train finetune --memory H100
    """
    if mesh is not None:
        plan_mesh(source, mesh, as_json, options)
        return
    if given := [f'--{"devices" if name == "count" else name}' for name, value in options.items() if value]:
        raise ValueError(f'{", ".join(given)}: only used with --mesh')
    sections: dict[str, Any] = {'versions': versions(), 'devices': devices(), 'compiled programs': programs()}
    if source is not None:
        from vipllava_jax.loading import locate

        sections = {'model': checkpoint_contents(locate(source)), **sections}
    if as_json:
        click.echo(json.dumps(sections))
        return
    for title, part in sections.items():
        click.echo(f'{title}')
        for name, value in part.items():
            shown = ', '.join(map(str, value)) if isinstance(value, list) else str(value)
            click.echo(f'  {name:<22} {printable(shown, LONGEST)}')


def plan_mesh(source: str | None, mesh: Any, as_json: bool, options: dict[str, Any]) -> None:
    """Shows where the weights of a checkpoint lie on a mesh, and what each device holds."""
    if source is None:
        raise ValueError('--mesh: give the --model that lies on it')
    reserve()  # as the commands that use a mesh
    from vipllava_jax.cli import mesh_plan
    from vipllava_jax.loading import locate

    weights = pop_weight_options(options)
    question = mesh_plan.Question(
        mesh,
        options['batch'] or 1,
        options['context'],
        options['memory'],
        options['count'],
        options['train'],
        weights,
    )
    layout = mesh_plan.lay_out(locate(source), question)
    if as_json:
        click.echo(json.dumps(layout.record()))
        return
    for line in mesh_plan.show(layout):
        click.echo(line)


def versions() -> dict[str, str]:
    """The versions of the relevant packages that are installed."""
    found = {'vipllava-jax': __version__, 'python': platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def devices() -> dict[str, str]:
    """The name of each device and, if it reports it, its memory."""
    import jax

    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the requested platform is not available
        return {'none': ' '.join(str(error).split()) or 'jax found no device: see JAX_PLATFORMS'}
    descriptions = {}
    for device in found:
        memory = (device.memory_stats() or {}).get('bytes_limit')
        descriptions[str(device)] = device.device_kind + (f', {memory / 1e9:.0f} GB' if memory else '')
    return descriptions


def programs() -> dict[str, str]:
    """The folder of compiled programs, and its size."""
    import jax

    settings = jax.config.values
    folder = settings['jax_compilation_cache_dir']
    if not folder or not settings['jax_enable_compilation_cache']:
        return {'folder': 'none: see vipllava --help'}
    return {'folder': folder, 'size': f'{compilation.cache_size(Path(folder)) / 1e6:.1f} MB'}


def checkpoint_contents(folder: Path) -> dict[str, Any]:
    """A checkpoint folder's format, sizes and templates, read from headers only."""
    from vipllava_jax import checkpoint
    from vipllava_jax.convert import to_flax
    from vipllava_jax.inputs.processor import Processor

    if checkpoint.is_checkpoint(folder):
        stored = checkpoint.open(folder)
        format, cfg = 'converted', stored.cfg
        leaves = [(leaf.size, leaf.dtype) for leaf in stored.leaves.values()]
        unused: tuple[str, ...] = ()
    else:
        plan = to_flax.plan_conversion(folder)
        format, cfg, unused = 'PyTorch', plan.cfg, plan.unused
        leaves = [(leaf.size, tensor.dtype) for leaf, tensor in plan.pairs]
    dtypes: Counter[str] = Counter()
    for size, dtype in leaves:
        dtypes[str(dtype)] += size
    text, vision = cfg.text, cfg.vision
    try:
        processor = Processor.load(folder).for_model(cfg)
        prompts = {'template': 'vipllava (the default)', 'chat template': chat_template(processor)}
    except (ValueError, OSError) as error:
        prompts = {'processor': f'none ({error})'}
    return {
        'folder': str(folder),
        'format': format,
        'parameters': sum(dtypes.values()),
        'types': [f'{dtype} {size / sum(dtypes.values()):.1%}' for dtype, size in dtypes.items()],
        'text': f'{text.layers} layers, width {text.width}, {text.heads} heads, {text.kv_heads} for keys',
        'vision': f'{vision.layers} layers, width {vision.width}, {vision.heads} heads',
        'pictures': f'{vision.image_size} pixels square, {vision.patches} tokens each',
        'vocabulary': text.vocab,
        'feature layers': list(cfg.feature_layers),
        'context': text.context,
        'ids': f'<image> {cfg.image_token}, bos {cfg.bos}, eos {", ".join(map(str, cfg.eos))}, pad {cfg.pad}',
        'unused tensors': len(unused),
        **prompts,
    }


def chat_template(processor: 'Processor') -> str:
    """Whether the folder has a chat template, and whether it can be used."""
    from vipllava_jax.inputs.prompts import rendering_problem

    if processor.chat_template is None:
        return 'none'
    why = rendering_problem(processor.chat_template)
    return f'not usable: {why}' if why else 'yes: --template checkpoint'
