"""The options of `vipllava bench`, and what can be checked before anything is loaded."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipllava_jax.cli.bench_engine import EngineOptions
from vipllava_jax.evaluation.outputs import check_outputs
from vipllava_jax.files import check_writable
from vipllava_jax.weight_options import WeightOptions


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    source: str | None
    preset: str | None
    what: tuple[str, ...] | None
    batches: tuple[int, ...] | None
    contexts: tuple[int, ...] | None
    repeats: int
    dtype: str | None
    quantize: str | None
    attention: Any
    fuse: bool | None
    mesh: Any
    peer: str | None
    json_file: Path | None
    plot: Path | None
    engine: EngineOptions

    @property
    def outputs(self) -> dict[str, Path]:
        """The files to write, by their options."""
        return {name: path for name, path in (('--json', self.json_file), ('--plot', self.plot)) if path}

    @property
    def with_engine(self) -> bool:
        return 'engine' in (self.what or ())

    @property
    def weights(self) -> WeightOptions:
        return WeightOptions(dtype=self.dtype, quantize=self.quantize, fuse=self.fuse)

    def check(self) -> None:
        """Raises ValueError for options that would otherwise fail only after the measurements."""
        if self.source and self.preset:
            raise ValueError('--model and --preset: give one of them')
        if self.mesh and self.peer:
            raise ValueError('--peer transformers: runs on one device; leave out --mesh or --peer')
        for path in self.outputs.values():
            check_writable(path)
        check_outputs(self.outputs, ())
        if self.plot and self.plot.suffix != '.png':
            raise ValueError(f'--plot {self.plot}: expected a name that ends in .png')
        if self.plot and not importlib.util.find_spec('matplotlib'):
            raise ValueError("--plot needs matplotlib: pip install 'vipllava-jax[bench]'")
