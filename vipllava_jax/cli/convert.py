"""`vipllava convert`: converts a PyTorch checkpoint to our format, and back."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vipllava_jax.cli.paths import FOLDER, FOLDER_PATH
from vipllava_jax.messages import listed, printable
from vipllava_jax.progress_bar import progress_bar
from vipllava_jax.weight_options import FLOATS, QUANTIZED

if TYPE_CHECKING:
    from vipllava_jax.convert.to_flax import Report
    from vipllava_jax.convert.verify import Comparison

F = TypeVar('F', bound=Callable[..., Any])
MAX_UNUSED = 300  # tensors that are listed; the text half of a CLIP has about 200
FLAX, PYTORCH = 'Flax', 'PyTorch'


quantize_option = click.option(
    '--quantize', type=click.Choice(QUANTIZED), help='Quantize the large weights of the decoder.'
)


def conversion_options(command: F) -> F:
    """The arguments and options of the command and of both scripts in the folder convert/."""
    for add in reversed(
        (
            click.argument('source', type=FOLDER),
            click.argument('target', type=FOLDER_PATH),
            click.option(
                '--dtype',
                type=click.Choice(FLOATS),
                help='The dtype of the weights that are not quantized.  [default: that of SOURCE]',
            ),
            click.option(
                '--adapter',
                metavar='FOLDER',
                type=FOLDER_PATH,
                help='Merge the LoRA adapter in this folder, in the format of this package, of peft or of '
                "the model's authors.",
            ),
            click.option(
                '--verify',
                is_flag=True,
                help='Afterwards, compare the weights and the logits of SOURCE and TARGET.',
            ),
            click.option('--overwrite', is_flag=True, help='Replace TARGET if it holds a checkpoint.'),
        )
    ):
        command = add(command)
    return command


@click.command()
@quantize_option
@conversion_options
def convert(source: str, target: Path, **options: Any) -> None:
    """Convert SOURCE to the new folder TARGET: a PyTorch checkpoint to Flax, or a Flax one to PyTorch.

    SOURCE is a folder, the name of a PyTorch checkpoint on the Hugging Face Hub, or demo; it is not changed.
    TARGET appears once it is complete, with the config, tokenizer and processor files it needs.

    \b
    Examples:
      vipllava convert llava-hf/vip-llava-7b-hf ./vip-llava-7b --dtype bfloat16
      vipllava convert llava-hf/vip-llava-7b-hf ./vip-llava-7b-int8 --quantize int8
      vipllava convert ./vip-llava-7b ./for-transformers --verify
      vipllava convert ./vip-llava-7b ./tuned-for-transformers --adapter ./adapter
    """
    run_conversion(source, target, **options)


def run_conversion(
    source: str,
    target: Path,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: Path | None = None,
    verify: bool = False,
    overwrite: bool = False,
    to: str | None = None,
) -> None:
    """Converts a checkpoint and reports on stdout what was done, and on stderr what may be wrong.

    The direction depends on the source; `to`, FLAX or PYTORCH, allows only one. Raises ValueError.
    """
    from vipllava_jax.convert import verify as verifying
    from vipllava_jax.folders import check_new_folder
    from vipllava_jax.loading import locate

    if verify and adapter:
        raise ValueError(
            '--verify compares with SOURCE as it is, without the --adapter: leave one of them out'
        )
    check_new_folder(target, overwrite)  # before a download
    folder = locate(source)
    work = _conversion(folder, source, quantize, to)
    with progress_bar('converting') as progress:
        report = work(folder, target, dtype=dtype, adapter=adapter, overwrite=overwrite, progress=progress)
    _show_report(report, target)
    if verify:
        with progress_bar('verifying') as progress:
            comparison = verifying.verify(folder, target, progress=progress)
        _show_comparison(comparison, folder, target, dtype)


def _conversion(folder: Path, source: str, quantize: str | None, to: str | None) -> 'Callable[..., Report]':
    """The function that converts the checkpoint in a folder; ValueError if it cannot be what is asked for."""
    from vipllava_jax import checkpoint
    from vipllava_jax.convert import to_flax, to_torch

    converted = checkpoint.is_checkpoint(folder)
    if to == FLAX and converted:
        raise ValueError(
            f'{source}: is already converted; convert/flax_to_vipllava.py converts it to PyTorch'
        )
    if to == PYTORCH and not converted:
        raise ValueError(
            f'{source}: is a PyTorch checkpoint; convert/vipllava_to_flax.py converts it to Flax'
        )
    if converted and quantize:
        raise ValueError(
            f'--quantize: PyTorch has no such weights; convert the PyTorch checkpoint, not {source}'
        )
    return to_torch.export if converted else partial(to_flax.convert, quantize=quantize)


def _show_report(report: 'Report', target: Path) -> None:
    size = report.size / 1e9
    click.echo(
        f'{printable(str(target), 4096)}: {report.tensors} tensors, {size:.2f} GB in {report.seconds:.1f} s'
    )
    for name in report.unused[:MAX_UNUSED]:
        click.echo(f'unused: {name}')
    if len(report.unused) > MAX_UNUSED:
        click.echo(f'unused: {len(report.unused) - MAX_UNUSED} more tensors')
    for note in report.notes:
        click.echo(printable(note))
    for warning in report.warnings:
        click.echo(f'vipllava: warning: {printable(warning)}', err=True)


def _show_comparison(comparison: 'Comparison', folder: Path, target: Path, dtype: str | None) -> None:
    """Prints the largest differences; ValueError if the sides are not equal but should be."""
    differences = {**comparison.groups, 'logits': comparison.logits}
    for group, difference in differences.items():
        click.echo(f'{group:<24} largest difference {difference:g}')
    if names := comparison.not_finite:
        advice = 'try --dtype bfloat16' if dtype == 'float16' else 'copy the source again'
        raise ValueError(
            f'{target} is not equal to {folder}: NaN or infinity in {listed(names, 3)}; {advice}'
        )
    if dtype is None and not comparison.equal:
        raise ValueError(f'{target} is not equal to {folder}: convert it again with --overwrite')
