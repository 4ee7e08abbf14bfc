"""Programs whose kernels start one by one on a GPU.

XLA records kernels as a graph, which starts when all of it has been prepared. This costs the host less while
the GPU is busy, but delays a program for which the GPU waits: 6 ms before a prompt on an H100.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax

NO_GRAPHS = {'xla_gpu_graph_min_graph_size': 1 << 30}  # kernels


class WithoutGraphs:
    """`jax.jit` of a function, without graphs if the default device is a GPU, which imports do not know."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.function, self.options = function, options

    @cached_property
    def program(self) -> Any:
        options = NO_GRAPHS if jax.default_backend() == 'gpu' else None
        return jax.jit(self.function, compiler_options=options, **self.options)

    def __call__(self, *args: Any, **static: Any) -> Any:
        return self.program(*args, **static)

    def lower(self, *args: Any, **static: Any) -> Any:
        """The program for arguments or their shapes, not yet compiled."""
        return self.program.lower(*args, **static)
