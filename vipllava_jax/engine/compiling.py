"""Compiles all programs of an engine, so that none is compiled while questions wait."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipllava_jax.engine.device import Device, Selection
from vipllava_jax.engine.limiting import FEW, all_ids, allow_only, report, rewind_rows
from vipllava_jax.engine.programs import (
    decode_lanes,
    prefill_after,
    prefill_prompts,
    put_alternately,
    put_rows,
    put_token,
    read_pictures,
    select_first,
    select_next,
    take_after_prefix,
    take_logits,
    take_prefix,
    take_row,
)
from vipllava_jax.engine.row_settings import put_settings, take_settings
from vipllava_jax.engine.stats import Counts
from vipllava_jax.model.llama import Cache, PrefixCache
from vipllava_jax.sharding import placed_shape

AT_ONCE = 16  # programs that are compiled at the same time
ROW = np.int32(0)
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]  # a program, its arguments or their shapes


def compile_all(device: Device, progress: Callable[[int, int], None] | None = None) -> None:
    """Compiles the programs of an engine in parallel; `progress` is given the numbers of those and of all."""
    calls = [*_calls(device)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # Each is traced here, while those before it are compiled.
        waiting = [pool.submit(program.lower(*args, **static).compile) for program, args, static in calls]
        for n, compiled in enumerate(as_completed(waiting), 1):
            compiled.result()
            if progress:
                progress(n, len(calls))


class CompilationCounter:
    """Counts the programs that are compiled in this thread within the context."""

    def __init__(self, counts: Counts) -> None:
        self.counts, self.thread = counts, threading.get_ident()

    def __enter__(self) -> None:
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith('backend_compile_duration') and threading.get_ident() == self.thread:
            self.counts.compilations += 1


def _calls(device: Device) -> Iterator[Call]:
    """The calls that a device makes, the ones that compile the longest first."""
    yield from _decoding(device)
    yield from _prefills(device)
    yield from _pictures(device)
    yield from _rows(device)
    yield from _limits(device)


def _decoding(device: Device) -> Iterator[Call]:
    shapes, static = device.shapes, {'cfg': device.cfg}
    for group in shapes.groups():
        lanes = [device.lane(lane) for lane in group]
        args = tuple([getattr(lane, name) for lane in lanes] for name in ('cache', 'tokens', 'positions'))
        B = sum(len(lane.tokens) for lane in lanes)
        active = [np.zeros(len(lane.tokens), bool) for lane in lanes]
        if group != (shapes.halved_lane,):
            yield decode_lanes, (device.params, *args, None), static
        if shapes.shares(group):
            prefix = _prefix(device, shapes.prefix_slots[0])
            shared = dataclasses.replace(prefix, members=np.zeros(B, bool))
            yield decode_lanes, (device.params, *args, shared), static
        for selection in Selection:
            own = [selection.part(device.settings[lane]) for lane in group] if selection else None
            yield select_next, (_logits(device, B), args[2], active, own), {'top': selection.top}


def _prefills(device: Device) -> Iterator[Call]:
    shapes, static = device.shapes, {'cfg': device.cfg}
    for B, length in shapes.prefills():
        tokens = np.zeros((B, length), np.int32)
        prompts = tokens, np.ones(B, np.int32), device.no_features, tokens
        yield prefill_prompts, (device.params, *prompts), {**static, 'slots': shapes.cache_slots(length)}
    for length in shapes.rest_lengths:
        for B, slots, joined in [
            *((shapes.together[-1], slots, True) for slots in shapes.prefix_slots),
            (shapes.rest_together, shapes.prefix_slots[0], False),
        ]:
            rest = np.zeros((B, length), np.int32), np.ones(B, np.int32), _prefix(device, slots)
            own = {'slots': shapes.slots if joined else length, 'joined': joined}
            yield prefill_after, (device.params, *rest), {**static, **own}
    for B in shapes.prefilled_together:
        first = _logits(device, B), np.ones(B, np.int32), all_ids(B, device.cfg.text.vocab)
        yield select_first, (*first, None), {'top': None}
    for selection in Selection:
        first = _logits(device, 1), np.ones(1, np.int32), all_ids(1, device.cfg.text.vocab)
        yield select_first, (*first, selection.part(device.neutral)), {'top': selection.top}


def _pictures(device: Device) -> Iterator[Call]:
    side = device.cfg.vision.image_size
    for count in device.shapes.pictures:
        yield (
            read_pictures,
            (device.params, np.zeros((count, side, side, 3), np.uint8), device.normalized),
            {'cfg': device.cfg},
        )


def _limits(device: Device) -> Iterator[Call]:
    """What limits the tokens of answers that have a format."""
    few = np.zeros(FEW, np.int32)
    sizes = device.shapes.sizes
    for B in sorted({sum(sizes[lane][0] for lane in group) for group in device.shapes.groups()}):
        yield allow_only, (_logits(device, B), few, all_ids(FEW, device.cfg.text.vocab)), {}
        yield report, (_logits(device, B), _tokens(device, B)), {'top': Selection.PROCESSED.top}
    for number, settings in enumerate(device.settings):
        yield rewind_rows, (device.lane(number), settings, few, few, few), {}


def _rows(device: Device) -> Iterator[Call]:
    shapes = device.shapes
    for number, settings in enumerate(device.settings):
        lane = device.lane(number)
        for B, size in sorted(shapes.sources(number)):
            numbers = np.zeros(B, np.int32)
            yield put_rows, (lane, numbers, _cache(device, B, size), _tokens(device, B), numbers), {}
        yield put_token, (lane, ROW, _tokens(device, 1)), {}
        yield put_settings, (settings, ROW, device.neutral), {}
        if number <= shapes.lane_of(max(0, len(shapes.wide) - 1)):
            yield take_row, (lane, ROW), {}
            yield take_settings, (settings, ROW), {}
        if shapes.halved and number < shapes.lane_of(0):
            yield take_after_prefix, (lane, ROW, ROW), {'slots': shapes.slots // 2}
    if shapes.halved:
        for arrays in (device.newest, device.settings):
            yield put_alternately, (arrays[-1], arrays[shapes.lane_of(0)]), {}
    for B, size in sorted({(B, shapes.cache_slots(n)) for B, n in shapes.prefills()}):
        for slots in shapes.prefix_slots:
            if slots <= size:
                yield take_prefix, (_cache(device, B, size), ROW), {'slots': slots}
    for B in shapes.prefilled_together:
        yield take_logits, (_logits(device, B), ROW), {}


def _prefix(device: Device, slots: int) -> PrefixCache:
    """The shape of a prefix of one row."""
    cache = _cache(device, 1, slots)
    return PrefixCache(cache.k, cache.v, np.ones(1, np.int32))


def _cache(device: Device, B: int, slots: int) -> Cache:
    text = device.cfg.text
    kv = jax.ShapeDtypeStruct((B, slots, text.kv_heads, text.head_size), device.dtype)
    placed: Any = (placed_shape(kv, 'BSKH', mesh=device.mesh),) * text.layers
    return Cache(placed, placed)


def _tokens(device: Device, B: int) -> Any:
    return placed_shape(jax.ShapeDtypeStruct((B,), jnp.int32), 'B', mesh=device.mesh)


def _logits(device: Device, B: int) -> Any:
    logits = jax.ShapeDtypeStruct((B, device.cfg.text.vocab), jnp.float32)
    return placed_shape(logits, 'BV', mesh=device.mesh)
