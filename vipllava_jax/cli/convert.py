"""`vipllava convert`: converts a PyTorch checkpoint to our format, and back."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from vipllava_jax.cli.paths import FOLDER, FOLDER_PATH
from vipllava_jax.messages import listed
from vipllava_jax.progress_bar import progress_bar
from vipllava_jax.weight_options import FLOATS, QUANTIZED

UNUSED = 300  # tensors that are listed; the text half of a CLIP has about 200


@click.command()
@click.argument('source', type=FOLDER)
@click.argument('target', type=FOLDER_PATH)
@click.option('--dtype', type=click.Choice(FLOATS), help="[default: the source's]")
@click.option('--quantize', type=click.Choice(QUANTIZED), help="Quantize the decoder's large weights.")
@click.option('--adapter', metavar='FOLDER', type=FOLDER_PATH, help='Merge an adapter, of ours or peft.')
@click.option('--verify', is_flag=True, help='Read both sides again and compare them, weights and logits.')
@click.option('--overwrite', is_flag=True, help='Replace TARGET if it holds a checkpoint.')
def convert(
    source: str,
    target: Path,
    dtype: str | None,
    quantize: str | None,
    adapter: Path | None,
    verify: bool,
    overwrite: bool,
) -> None:
    """Convert SOURCE to the new folder TARGET: a PyTorch checkpoint to Flax, or a converted one back.

    SOURCE is a folder, or the name of a PyTorch checkpoint on the Hugging Face Hub; it is not changed.
    TARGET appears once it is complete, with the config, tokenizer and processor files it needs.

    \b
    Examples:
      vipllava convert llava-hf/vip-llava-7b-hf ./vip-llava-7b --dtype bfloat16
      vipllava convert llava-hf/vip-llava-7b-hf ./vip-llava-7b-int8 --quantize int8
      vipllava convert ./vip-llava-7b ./for-transformers --verify
      vipllava convert ./vip-llava-7b ./tuned-for-transformers --adapter ./adapter
    """
    from vipllava_jax import checkpoint
    from vipllava_jax.convert import to_flax, to_torch
    from vipllava_jax.convert import verify as verifying
    from vipllava_jax.folders import check_place
    from vipllava_jax.loading import locate
    from vipllava_jax.messages import printable

    if verify and adapter:
        raise ValueError(
            '--verify compares with SOURCE as it is, without the --adapter: leave one of them out'
        )
    check_place(target, overwrite)  # before a download
    folder = locate(source)
    work: Callable[..., Any] = to_torch.export
    if not checkpoint.is_checkpoint(folder):
        work = partial(to_flax.convert, quantize=quantize)
    elif quantize:
        raise ValueError(
            f'--quantize: PyTorch has no such weights; convert the PyTorch checkpoint, not {source}'
        )
    with progress_bar('converting') as progress:
        report = work(folder, target, dtype=dtype, adapter=adapter, overwrite=overwrite, progress=progress)
    size = report.size / 1e9
    click.echo(
        f'{printable(str(target), 4096)}: {report.tensors} tensors, {size:.2f} GB in {report.seconds:.1f} s'
    )
    for name in report.unused[:UNUSED]:
        click.echo(f'unused: {name}')
    if len(report.unused) > UNUSED:
        click.echo(f'unused: {len(report.unused) - UNUSED} more tensors')
    for note in report.notes:
        click.echo(printable(note))
    if verify:
        with progress_bar('verifying') as progress:
            compared = verifying.verify(folder, target, progress=progress)
        differences = {**compared.groups, 'logits': compared.logits}
        for group, difference in differences.items():
            click.echo(f'{group:<24} largest difference {difference:g}')
        if odd := compared.not_finite:
            advice = 'try --dtype bfloat16' if dtype == 'float16' else 'get a whole copy of the source'
            raise ValueError(
                f'{target} is not equal to {folder}: NaN or infinity in {listed(odd, 3)}; {advice}'
            )
        if dtype is None and not compared.equal:
            raise ValueError(f'{target} is not equal to {folder}: convert it again with --overwrite')
