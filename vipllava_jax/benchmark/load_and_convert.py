"""Measures loading and converting of checkpoints."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vipllava_jax import checkpoint, loading
from vipllava_jax.arrays import size
from vipllava_jax.benchmark.measure import timed
from vipllava_jax.benchmark.subject import Subject, random_leaves
from vipllava_jax.benchmark.timing import OURS, Line, Run
from vipllava_jax.convert import to_flax, to_torch
from vipllava_jax.model.params import abstract


class Folders:
    """The same weights in a folder of our format and in one of PyTorch's, each written at its first use.

    The folders are never quantized. Weights are loaded in the subject's dtype, and quantized if `quantize`
    is given.
    """

    def __init__(self, subject: Subject, source: Path | None, place: Path, quantize: str | None = None):
        self.subject, self.source, self.place = subject, source, place
        self.options: dict[str, Any] = dict(dtype=subject.dtype, quantize=quantize)

    @cached_property
    def converted(self) -> Path:
        if self.source and checkpoint.is_checkpoint(self.source):
            return self.source
        target = self.place / 'converted'
        if self.source:
            to_flax.convert(self.source, target)
        else:
            cfg, dtype = self.subject.cfg, self.subject.dtype
            leaves = random_leaves(cfg, dtype)
            cfg = dataclasses.replace(cfg, eos=(cfg.pad,))  # a stored config needs an end id
            checkpoint.save(target, abstract(cfg, dtype), cfg, leaves=leaves)
        return target

    @cached_property
    def pytorch(self) -> Path:
        if self.source and not checkpoint.is_checkpoint(self.source):
            return self.source
        target = self.place / 'pytorch'
        to_torch.export(self.converted, target)
        return target

    def load(self, format: str) -> Run:
        """Times loading a folder in the page cache; the subject's params stay on the device."""
        folder = getattr(self, format.lower())
        return timed(
            lambda: loading.load(folder, **self.options, mesh=self.subject.mesh, progress=False).params
        )

    def convert(self) -> Run:
        """Times converting a PyTorch folder in the page cache to a new folder in our format on the disk."""
        source, target = self.pytorch, self.place / 'again'
        run = timed(lambda: to_flax.convert(source, target, **self.options) and None)

        def from_the_start() -> float:
            shutil.rmtree(target, ignore_errors=True)
            return run()

        return from_the_start


def lines(folders: Folders, what: Sequence[str]) -> Iterator[Line]:
    """The lines about loading and converting, each repeated at most three times."""
    subject = folders.subject
    output = size(abstract(subject.cfg, subject.dtype)) / 1e9, 'GB/s'  # the size before quantizing
    if 'load' in what:
        for format in ('converted', 'PyTorch'):
            run = {OURS: partial(folders.load, format)}
            yield Line('load', format, 0, run, output=output, max_repeats=3, memory=True)
    if 'convert' in what:
        yield Line(
            'convert', 'PyTorch', 0, {OURS: folders.convert}, output=output, max_repeats=3, memory=True
        )
