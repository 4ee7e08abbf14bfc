"""The measurements of this library: each method prepares a task and returns a function that times it once."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from vipllava_jax.benchmark.subject import Subject
from vipllava_jax.benchmark.timing import Run
from vipllava_jax.compilation import SETTINGS
from vipllava_jax.config import Config
from vipllava_jax.generation.decoding import CHUNK, decode_chunk, generate, prefill_batch
from vipllava_jax.generation.state import State, eos_rows
from vipllava_jax.inputs.batch import bucket
from vipllava_jax.model.vipllava import Params, VipLlava
from vipllava_jax.signals import temporary_folder

STEPS = 64  # tokens per answer


class Ours(NamedTuple):
    """This library's measurements: one method per line of the table, with the name of the line."""

    subject: Subject

    def vision(self, batch: int) -> Run:
        """Times the vision tower and the projector: images on the device -> features."""
        params, cfg = self.subject
        images = jnp.asarray(self.subject.prompt(batch, cfg.vision.patches + 2).images)
        return timed(lambda: _features(params, images, cfg=cfg))

    def prefill(self, batch: int, tokens: int) -> Run:
        """Times the prefill of text-only prompts on the device -> cache and first tokens."""
        params, cfg = self.subject
        prompt = jax.device_put(self.subject.prompt(batch, tokens, images=0))
        slots, eos = bucket(tokens + STEPS), eos_rows(cfg.eos, batch)
        return timed(lambda: prefill_batch(params, prompt, None, eos, cfg=cfg, slots=slots))

    def first_token(self, batch: int, tokens: int) -> Run:
        """Times the prefill of prompts with one image each, on the device -> first tokens, on the host."""
        params, cfg = self.subject
        prompt = jax.device_put(self.subject.prompt(batch, tokens))
        slots, eos = bucket(tokens + STEPS), eos_rows(cfg.eos, batch)
        run = partial(prefill_batch, params, prompt, None, eos, cfg=cfg, slots=slots)
        return timed(lambda: np.asarray(run().tokens))

    def generate(self, batch: int, tokens: int) -> Run:
        """Times generation: prompts with one image each on the host -> answers of STEPS tokens."""
        params, cfg = self.subject
        prompt = self.subject.prompt(batch, tokens)
        return timed(lambda: generate(params, prompt, cfg=cfg, max_new_tokens=STEPS))

    def decode(self, batch: int, context: int) -> Run:
        """Times the same STEPS decoding steps after `context` tokens; returns the seconds per step."""
        params, cfg = self.subject
        state = self._state(batch, context)

        def run() -> float:
            nonlocal state
            positions = jax.device_put(np.full(batch, context, np.int32))
            state = jax.block_until_ready(dataclasses.replace(state, positions=positions))
            begin = time.perf_counter()
            for _ in range(STEPS // CHUNK):
                state, tokens = decode_chunk(params, state, cfg=cfg, steps=CHUNK)
            jax.block_until_ready((state, tokens))
            return (time.perf_counter() - begin) / STEPS

        return run

    def _state(self, batch: int, context: int) -> State:
        """The state of `batch` rows: one prompt with an image, prefilled once and copied to every row."""
        params, cfg = self.subject
        prompt = jax.device_put(self.subject.prompt(1, context))
        slots, eos = bucket(context + STEPS), eos_rows(cfg.eos, 1)
        one = prefill_batch(params, prompt, None, eos, cfg=cfg, slots=slots)
        return jax.jit(lambda state: jax.tree.map(lambda x: jnp.repeat(x, batch, axis=0), state))(one)

    def release(self) -> None:
        """Does nothing: the buffers of a line are freed with it."""

    def compilation(self, batch: int, tokens: int) -> Run:
        """Times tracing and compiling the two programs of an answer, with jax's in-memory caches cleared."""
        cfg = self.subject.cfg
        params, prompt = jax.tree.map(_shape, (self.subject.params, self.subject.prompt(batch, tokens)))
        slots, eos = bucket(tokens + STEPS), eos_rows(cfg.eos, batch)

        def programs() -> None:
            prefill_batch.lower(params, prompt, None, eos, cfg=cfg, slots=slots).compile()
            state = jax.eval_shape(partial(prefill_batch, cfg=cfg, slots=slots), params, prompt, None, eos)
            decode_chunk.lower(params, state, cfg=cfg, steps=CHUNK).compile()

        run = timed(programs)

        def without_caches() -> float:
            jax.clear_caches()
            return run()

        return without_caches


@contextmanager
def compilation_cache() -> Iterator[None]:
    """Uses an empty temporary folder as the persistent compilation cache within the context."""
    with temporary_folder('vipllava-bench-') as folder:
        settings = {**SETTINGS, 'jax_enable_compilation_cache': True, 'jax_compilation_cache_dir': folder}
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            reset_cache()


@partial(jax.jit, static_argnames='cfg')
def _features(params: Params, images: Array, *, cfg: Config) -> Any:
    return VipLlava(cfg).apply({'params': params}, images, method='features')


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def timed(f: Callable[[], Any]) -> Run:
    """Returns a function that calls f, waits for its result, and returns the seconds taken."""

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(f())
        return time.perf_counter() - begin

    return run
