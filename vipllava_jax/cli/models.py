"""The options for the model and its weights, and loading it."""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vipllava_jax.arrays import flat
from vipllava_jax.checkpoint import FLOATS, QUANTIZED
from vipllava_jax.cli.paths import FOLDER
from vipllava_jax.cli.waiting import bytes_bar
from vipllava_jax.compilation import background
from vipllava_jax.inputs.prompts import NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from vipllava_jax.config import Config
    from vipllava_jax.inputs.processor import Batch, Processor
    from vipllava_jax.loading import Model

F = TypeVar('F', bound=Callable[..., Any])
DEFAULT_MODEL = 'llava-hf/vip-llava-7b-hf'
model_option = click.option(
    '--model',
    'source',
    metavar='M',
    type=FOLDER,
    default=DEFAULT_MODEL,
    show_default=True,
    help='A folder, PyTorch or converted, a name on the Hugging Face Hub, or demo: the small one inside.',
)
template_option = click.option(
    '--template',
    type=click.Choice(NAMES),
    default='vipllava',
    show_default=True,
    help="The prompt's wording; checkpoint is the folder's own chat template.",
)


def fit_option(usual: str) -> Callable[[F], F]:
    """The option for how pictures are fitted to the square that the model sees."""
    kinds = click.Choice(('crop', 'pad', 'squash'))
    return click.option('--fit', type=kinds, help=f'How a picture becomes square.  [default: {usual}]')


def weight_options(command: F) -> F:
    """The options for loading weights, with the names of the arguments of `loading`: `**kind`."""
    command = click.option(
        '--adapter',
        metavar='FOLDER',
        type=FOLDER,
        help="An adapter for the model, of ours, peft's or the authors'.",
    )(command)
    command = click.option(
        '--quantize',
        type=click.Choice(QUANTIZED),
        help="Keep the decoder's large weights so: half or a quarter of the memory.",
    )(command)
    return click.option('--dtype', type=click.Choice(FLOATS), help="[default: the checkpoint's]")(command)


def types(shapes: dict[str, Any]) -> dict[str, str | None]:
    """The dtype and quantization of a model's weights, named as the options."""
    dtypes = {leaf.dtype.name for _, leaf in flat(shapes)}
    quantize = [name for name in QUANTIZED if name in dtypes]
    return {'dtype': shapes['llama']['norm']['w'].dtype.name, 'quantize': quantize[-1] if quantize else None}


def compiling(
    shapes: dict[str, Any], batch: 'Batch', cfg: 'Config', settings: dict[str, Any]
) -> Callable[[], None]:
    """Starts to compile in the background, before the weights are loaded; returns a function that waits."""
    from vipllava_jax.generation.decoding import compile_for

    return background(partial(compile_for, shapes, batch, cfg=cfg, **settings))


def load(folder: 'Path', processor: 'Processor', **kind: Any) -> 'tuple[Model, float]':
    """Loads the model with a progress bar; returns it and the seconds taken."""
    from vipllava_jax import loading

    begin = time.perf_counter()
    with bytes_bar(f'loading {folder.name}') as progress:
        params, cfg = loading.weights(folder, **kind, progress=progress)
    return loading.Model(params, cfg, processor), round(time.perf_counter() - begin, 3)
