"""The programs that jax compiles."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def compilations(pattern: str) -> Iterator[list[str]]:
    """A list of the programs compiled so far within the block, of those whose names match a pattern."""
    names: list[str] = []

    def listen(event: str, seconds: float, fun_name: str = '', **_: Any) -> None:
        if event.endswith('backend_compile_duration') and re.search(pattern, fun_name):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
