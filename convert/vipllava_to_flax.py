"""Converts a PyTorch checkpoint of ViP-LLaVA to Flax; runs from a clone, without installing the package."""

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vipllava_jax import cli
from vipllava_jax.cli.convert import FLAX, conversion_options, quantize_option, run_conversion


@click.command()
@quantize_option
@conversion_options
def vipllava_to_flax(source: str, target: Path, **options: Any) -> None:
    """Convert the PyTorch checkpoint SOURCE to Flax, in the new folder TARGET.

    SOURCE is a folder or the name of a checkpoint on the Hugging Face Hub; it is not changed. TARGET appears
    once it is complete, with the config, tokenizer and processor files it needs.

    \b
    Examples:
      python convert/vipllava_to_flax.py llava-hf/vip-llava-7b-hf ./vip-llava-7b --dtype bfloat16
      python convert/vipllava_to_flax.py ./vip-llava-7b-hf ./vip-llava-7b-int8 --quantize int8
    """
    run_conversion(source, target, to=FLAX, **options)


if __name__ == '__main__':
    cli.main(vipllava_to_flax)
