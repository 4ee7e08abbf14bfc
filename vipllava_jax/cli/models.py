"""The options for the model and its weights, and loading it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vipllava_jax.arrays import flat
from vipllava_jax.cli.paths import FOLDER
from vipllava_jax.inputs.prompts import TEMPLATE_NAMES
from vipllava_jax.threads import background
from vipllava_jax.weight_options import FLOATS, QUANTIZED

if TYPE_CHECKING:
    from vipllava_jax.config import Config
    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.inputs.batch import Batch
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Model, Source
    from vipllava_jax.weight_options import WeightOptions

F = TypeVar('F', bound=Callable[..., Any])
DEFAULT_MODEL = 'llava-hf/vip-llava-7b-hf'
model_option = click.option(
    '--model',
    'source',
    metavar='M',
    type=FOLDER,
    default=DEFAULT_MODEL,
    show_default=True,
    help='The model: a folder, PyTorch or converted; a name on the Hugging Face Hub; or demo, the small '
    'bundled model.',
)
template_option = click.option(
    '--template',
    type=click.Choice(TEMPLATE_NAMES),
    default='vipllava',
    show_default=True,
    help="The format of the prompt; checkpoint selects the chat template in the checkpoint's files.",
)


def fit_option(default: str) -> Callable[[F], F]:
    """The option for how pictures are fitted to the square that the model sees."""
    choices = click.Choice(('crop', 'pad', 'squash'))
    text = (
        'How a picture is made square: crop keeps the centre, pad adds borders, squash '
        'changes the proportions.'
        f'  [default: {default}]'
    )
    return click.option('--fit', type=choices, help=text)


def weight_options(command: F) -> F:
    """The options for loading weights, named as the fields of `WeightOptions`."""
    command = click.option(
        '--adapter',
        metavar='FOLDER',
        type=FOLDER,
        help='The folder of a LoRA adapter for the model, in the format of this package, of peft or of the '
        "model's authors.",
    )(command)
    command = click.option(
        '--quantize',
        type=click.Choice(QUANTIZED),
        help="Quantize the decoder's large weights: int8 takes half the memory of bfloat16, int4 a quarter.",
    )(command)
    return click.option(
        '--dtype',
        type=click.Choice(FLOATS),
        help="The dtype of the weights that are not quantized.  [default: that of the checkpoint's files]",
    )(command)


def pop_weight_options(options: dict[str, Any]) -> 'WeightOptions':
    """Removes the values of `weight_options` from a command's options and returns them."""
    from vipllava_jax.weight_options import WeightOptions

    return WeightOptions(**{name: options.pop(name) for name in ('dtype', 'quantize', 'adapter')})


def weight_dtypes(shapes: dict[str, Any]) -> dict[str, str | None]:
    """The dtype and quantization of a model's weights, named as the options."""
    dtypes = {leaf.dtype.name for _, leaf in flat(shapes)}
    quantize = [name for name in QUANTIZED if name in dtypes]
    return {'dtype': shapes['llama']['norm']['w'].dtype.name, 'quantize': quantize[-1] if quantize else None}


def compile_in_background(
    shapes: dict[str, Any],
    batch: 'Batch',
    cfg: 'Config',
    settings: 'GenerationSettings',
    processor: 'Processor',
    sharing: 'Batch | None' = None,
) -> Callable[[], None]:
    """Starts to compile in the background, before the weights are loaded; returns a function that waits.

    `sharing` are prompts, those of the batch among them, whose common beginning is computed once.
    """
    from vipllava_jax.answering.prefixes import shared_beginning
    from vipllava_jax.generation.decoding import compile_for
    from vipllava_jax.generation.prefix import compile_prefix

    def compile() -> None:
        shared = None if sharing is None else shared_beginning(sharing, cfg)
        prefix, wait = compile_prefix(shapes, *shared, cfg=cfg) if shared else (None, None)
        compile_for(shapes, batch, cfg=cfg, settings=settings, processor=processor, prefix=prefix)
        if wait:
            wait()

    return background(compile)


def open_model(source: str, options: 'WeightOptions', mesh: Any) -> 'tuple[Source, Processor]':
    """Locates the checkpoint, and checks all of it except the values of the weights."""
    from vipllava_jax import loading
    from vipllava_jax.inputs.processor import Processor

    folder = loading.locate(source)
    processor = Processor.load(folder)
    weights = loading.open(folder, options, mesh)
    return weights, processor.for_model(weights.cfg)


def load_model(weights: 'Source', processor: 'Processor') -> 'tuple[Model, float]':
    """Loads the model with a progress bar; returns it and the seconds taken."""
    from vipllava_jax.loading import Model

    begin = time.perf_counter()
    model = Model(weights.load(), weights.cfg, processor)
    return model, round(time.perf_counter() - begin, 3)
