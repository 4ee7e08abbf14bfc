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
from jax.sharding import Mesh, Sharding

from vipllava_jax.benchmark.subject import Subject
from vipllava_jax.benchmark.timing import Run
from vipllava_jax.compilation import SETTINGS
from vipllava_jax.config import Config
from vipllava_jax.generation.decoding import CHUNK, generate
from vipllava_jax.generation.prefix import compute_prefix
from vipllava_jax.generation.programs import decode_chunk, prefill_batch
from vipllava_jax.generation.rows import place_rows, to_host
from vipllava_jax.generation.state import State, eos_rows, map_state, pin_state
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.vipllava import Params, VipLlava
from vipllava_jax.sharding import sharding
from vipllava_jax.signals import temporary_folder

STEPS = 64  # tokens per answer
QUESTION = 24  # tokens in which prompts about one picture differ


class Ours(NamedTuple):
    """This library's measurements: one method per line of the table, with the name of the line."""

    subject: Subject

    def vision(self, batch: int) -> Run:
        """Times the vision tower and the projector: images on the device -> features."""
        params, cfg, mesh = self.subject
        images = place_rows(self.subject.prompt(batch, cfg.vision.patches + 2).images, mesh)
        images = jnp.asarray(images)
        return timed(lambda: _features(params, images, cfg=cfg))

    def prefill(self, batch: int, tokens: int) -> Run:
        """Times the prefill of text-only prompts on the device -> cache and first tokens."""
        params, cfg, _ = self.subject
        prompt, eos = self._placed(self.subject.prompt(batch, tokens, images=0))
        slots = bucket(tokens + STEPS)
        return timed(lambda: prefill_batch(params, prompt, None, eos, cfg=cfg, slots=slots))

    def first_token(self, batch: int, tokens: int) -> Run:
        """Times the prefill of prompts with one image each, on the device -> first tokens, on the host."""
        params, cfg, _ = self.subject
        prompt, eos = self._placed(self.subject.prompt(batch, tokens))
        slots = bucket(tokens + STEPS)
        run = partial(prefill_batch, params, prompt, None, eos, cfg=cfg, slots=slots)
        return timed(lambda: to_host(run()[1].tokens))

    def generate(self, batch: int, tokens: int) -> Run:
        """Times generation: prompts with one image each on the host -> answers of STEPS tokens."""
        params, cfg, _ = self.subject
        prompt = self.subject.prompt(batch, tokens)
        return timed(lambda: generate(params, prompt, cfg=cfg, max_new_tokens=STEPS))

    def questions(self, batch: int, tokens: int) -> Run:
        """Times the same for prompts that differ in QUESTION tokens at the end; the rest is computed once."""
        params, cfg, _ = self.subject
        prompt, first = self.subject.questions(batch, tokens, QUESTION)

        def run() -> Any:
            prefix = compute_prefix(params, first.tokens[0, : first.lengths[0]], first.images[0], cfg=cfg)
            return generate(params, prompt, cfg=cfg, prefix=prefix, max_new_tokens=STEPS)

        return timed(run)

    def decode(self, batch: int, context: int) -> Run:
        """Times the same STEPS decoding steps after `context` tokens; returns the seconds per step."""
        return self._decode(self._state(batch, context), context)

    def decode_shared(self, batch: int, context: int) -> Run:
        """The same for rows that read all but the last STEPS tokens before these steps once."""
        params, cfg, mesh = self.subject
        whole, first = self.subject.questions(1, context, STEPS)
        prefix = compute_prefix(params, first.tokens[0, : first.lengths[0]], first.images[0], cfg=cfg)
        rest, eos = self._placed(prefix.remainder(whole, cfg.pad))
        static: dict[str, Any] = {'cfg': cfg, 'slots': bucket(2 * STEPS), 'share_keys': True}
        few, *_ = prefill_batch(params, rest, None, eos, None, prefix.arrays, **static)
        return self._decode(copied(few, batch, mesh), context, prefix.arrays.cache)

    def _decode(self, state: State, context: int, prefix: PrefixCache | None = None) -> Run:
        params, cfg, mesh = self.subject
        batch = len(state.tokens)

        def run() -> float:
            nonlocal state
            positions = jax.device_put(place_rows(np.full(batch, context, np.int32), mesh))
            state = jax.block_until_ready(dataclasses.replace(state, positions=positions))
            begin = time.perf_counter()
            for _ in range(STEPS // CHUNK):
                state, new = decode_chunk(params, state, prefix, cfg=cfg, steps=CHUNK)
            jax.block_until_ready((state, new))
            return (time.perf_counter() - begin) / STEPS

        return run

    def _state(self, batch: int, context: int) -> State:
        """The state of `batch` rows: one prompt with an image, prefilled once and copied to every row."""
        params, cfg, mesh = self.subject
        prompt, eos = self._placed(self.subject.prompt(1, context))
        few, *_ = prefill_batch(params, prompt, None, eos, cfg=cfg, slots=bucket(context + STEPS))
        return copied(few, batch, mesh)

    def _placed(self, prompt: Batch) -> tuple[Batch, Any]:
        """A prompt on the device or the mesh, and the ids that end its rows."""
        _, cfg, mesh = self.subject
        eos = eos_rows(cfg.eos, len(prompt.tokens))
        return (jax.device_put(prompt), eos) if mesh is None else place_rows((prompt, eos), mesh)

    def release(self) -> None:
        """Does nothing: the buffers of a line are freed with it."""

    def compilation(self, batch: int, tokens: int) -> Run:
        """Times tracing and compiling the two programs of an answer, with jax's in-memory caches cleared."""
        cfg, mesh = self.subject.cfg, self.subject.mesh
        prompt, eos = self._placed(self.subject.prompt(batch, tokens))
        params, prompt, eos = jax.tree.map(partial(_shape, mesh=mesh), (self.subject.params, prompt, eos))
        slots = bucket(tokens + STEPS)

        def placed(x: Any, letters: str) -> jax.ShapeDtypeStruct:
            return _shape(x, mesh, sharding(letters, x.shape, mesh))

        def programs() -> None:
            prefill_batch.lower(params, prompt, None, eos, cfg=cfg, slots=slots).compile()
            prefill = partial(prefill_batch, cfg=cfg, slots=slots)
            state, *_ = jax.eval_shape(prefill, params, prompt, None, eos)
            decode_chunk.lower(params, map_state(placed, state), cfg=cfg, steps=CHUNK).compile()

        run = timed(programs)

        def without_caches() -> float:
            jax.clear_caches()
            return run()

        return without_caches


@partial(jax.jit, static_argnames=('batch', 'mesh'))
def copied(state: State, batch: int, mesh: Mesh | None) -> State:
    """A state with the first row `batch` times."""
    return pin_state(jax.tree.map(lambda x: jnp.repeat(x[:1], batch, axis=0), state), mesh)


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


def _shape(x: Any, mesh: Mesh | None, place: Sharding | None = None) -> jax.ShapeDtypeStruct:
    """The shape of an array, on a mesh with its sharding or the one of `place`."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=(place or x.sharding) if mesh else None)


def timed(f: Callable[[], Any]) -> Run:
    """Returns a function that calls f, waits for its result, and returns the seconds taken."""

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(f())
        return time.perf_counter() - begin

    return run
