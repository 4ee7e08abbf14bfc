"""Converts Flax weights of ViP-LLaVA to PyTorch; runs from a clone, without installing the package."""

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vipllava_jax import cli
from vipllava_jax.cli.convert import PYTORCH, conversion_options, run_conversion


@click.command()
@conversion_options
def flax_to_vipllava(source: str, target: Path, **options: Any) -> None:
    """Convert the converted or trained folder SOURCE to PyTorch, in the new folder TARGET, for transformers.

    SOURCE is not changed, and must not be quantized. TARGET appears once it is complete, with the config,
    tokenizer and processor files it needs.

    \b
    Examples:
      python convert/flax_to_vipllava.py ./vip-llava-7b ./for-transformers --verify
      python convert/flax_to_vipllava.py ./vip-llava-7b ./tuned --adapter ./adapter
    """
    run_conversion(source, target, to=PYTORCH, **options)


if __name__ == '__main__':
    cli.main(flax_to_vipllava)
