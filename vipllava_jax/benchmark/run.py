"""Prepares the model to measure and the implementations to compare, and measures line by line."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from vipllava_jax import loading, placement
from vipllava_jax.benchmark import report, timing
from vipllava_jax.benchmark.measure import Ours
from vipllava_jax.benchmark.subject import PRESETS, Subject, random_params, silent
from vipllava_jax.benchmark.timing import OURS, Line, Result
from vipllava_jax.ceilings import Ceilings
from vipllava_jax.config import Attention, Config
from vipllava_jax.weight_options import WeightOptions

ON_CPU = dict(preset='tiny', batches=(1, 8), contexts=(704,), dtype='float32')  # takes at most a minute
ON_ACCELERATOR = dict(preset='7b', batches=(1, 8, 32, 128), contexts=(704, 1500), dtype='bfloat16')
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


def load_subject(
    folder: Path | None, cfg: Config, options: WeightOptions, attention: Attention | None, show: Show
) -> Subject:
    """The model to measure, with the weights of a folder or random ones."""
    if folder is None:
        show('creating random weights')
        params = random_params(cfg, options.dtype or default('dtype'), options.quantize)
        params = placement.place(params, cfg, fuse=options.fuse)
    else:
        weights = loading.open(folder, options)
        params, cfg = weights.load(), weights.cfg
    return Subject(jax.block_until_ready(params), silent(cfg, attention))


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
