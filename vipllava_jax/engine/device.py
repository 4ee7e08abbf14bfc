"""The rows of an engine on the device: prompts are read, put into free rows, and decoded."""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.engine.limiting import (
    FEW,
    all_ids,
    allow_only,
    few_numbers,
    few_rows,
    few_sets,
    report,
    rewind_rows,
)
from vipllava_jax.engine.programs import (
    PICTURES,
    Lane,
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
from vipllava_jax.engine.row_settings import (
    TOP,
    RowSettings,
    neutral_settings,
    put_settings,
    take_settings,
)
from vipllava_jax.engine.shapes import Shapes
from vipllava_jax.generation.logits.next_token import NewTokens
from vipllava_jax.generation.state import row_letters
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.model.llama import Cache, PrefixCache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import default_sharding, mesh_of, placed_shape, sharding

Place = tuple[int, int]  # a lane and a row of it


class Selection(IntEnum):
    """How the tokens of rows are selected; each does what those before it do, and takes longer."""

    GREEDY = 0
    SAMPLED = 1
    PROCESSED = 2  # with processors or log-probabilities

    def part(self, settings: RowSettings) -> RowSettings | None:
        """The part of the settings that this selection reads."""
        if self is Selection.GREEDY:
            return None
        return settings if self is Selection.PROCESSED else settings.without_processing

    @property
    def top(self) -> int | None:
        """The number of likeliest tokens that are reported."""
        return TOP if self is Selection.PROCESSED else None


class Prefilled(NamedTuple):
    """What a prefill of B prompts computes."""

    logits: Array  # BV
    cache: Cache  # BSKH
    lengths: np.ndarray  # B int32, of whole prompts
    allowed: np.ndarray  # BW uint32, the ids that the first tokens may have, a bit for each; all at first


class Device:
    """The lanes of an engine. Its methods start programs, and do not wait for their results.

    If `params` are shapes, as before weights are loaded, so are the other arrays, and take no memory.
    Programs can be compiled for them.
    """

    def __init__(self, params: Params, cfg: Config, shapes: Shapes, image_settings: ImageSettings) -> None:
        self.cfg, self.shapes, self.mesh = cfg, shapes, mesh_of(params)
        is_real = not any(isinstance(w, jax.ShapeDtypeStruct) for w in jax.tree.leaves(params))
        # All arrays are committed to their devices, because programs are compiled for those that are.
        self.params = jax.device_put(params, default_sharding()) if is_real and not self.mesh else params
        zeros, placed = (zeros_on_device, on_device) if is_real else (placed_shapes, placed_shapes)
        self.dtype = jnp.dtype(params['llama']['norm']['w'].dtype)
        text = cfg.text
        self.caches: dict[int, Cache] = {}  # by the lanes that own them
        self.newest: list[tuple[Array, Array]] = []  # the tokens and positions of each lane
        self.settings: list[RowSettings] = []
        for lane, (rows, slots) in enumerate(shapes.sizes):
            kv = jax.ShapeDtypeStruct((rows, slots, text.kv_heads, text.head_size), self.dtype)
            tokens: Any = jax.ShapeDtypeStruct((rows,), jnp.int32)
            layers: Any = (kv,) * text.layers
            if shapes.cache_of(lane) == lane:
                self.caches[lane] = zeros(Cache(layers, layers), self.mesh)
            self.newest.append(zeros((tokens, tokens), self.mesh))
            self.settings.append(placed(neutral_settings(rows, shapes.context), self.mesh))
        self.normalized = image_settings.normalized
        pictures = (PICTURES, cfg.vision.patches, text.width)
        self.no_features: Array = zeros(jax.ShapeDtypeStruct(pictures, self.dtype), self.mesh)
        self.no_tokens = {
            B: zeros(jax.ShapeDtypeStruct((B,), jnp.int32), self.mesh) for B in shapes.prefilled_together
        }
        self.neutral = placed(neutral_settings(1, shapes.context), self.mesh)

    def lane(self, number: int) -> Lane:
        """A lane, with the cache that it uses."""
        return Lane(self.caches[self.shapes.cache_of(number)], *self.newest[number])

    def _set_lane(self, number: int, lane: Lane) -> None:
        self.caches[self.shapes.cache_of(number)] = lane.cache
        self.newest[number] = lane.tokens, lane.positions

    def features(self, pictures: Sequence[np.ndarray]) -> Array:
        """Pictures hw3 uint8, at most PICTURES -> their features FPD."""
        most = next(n for n in self.shapes.pictures if n >= len(pictures))
        pixels = np.zeros((most, *pictures[0].shape), np.uint8)
        pixels[: len(pictures)] = pictures
        return read_pictures(self.params, pixels, self.normalized, cfg=self.cfg)

    def prefill(self, prompts: Sequence[np.ndarray], B: int, features: Array | None) -> Prefilled:
        """Prefills prompts, padded to B rows; their pictures have these features, in order."""
        length = self.shapes.length_for(max(map(len, prompts)))
        tokens, lengths = self._padded(prompts, B, length)
        is_picture = tokens == self.cfg.image_token
        sources = np.where(is_picture, np.cumsum(is_picture).reshape(tokens.shape) - 1, -1)
        features = self.no_features if features is None else features
        slots = self.shapes.cache_slots(length)
        logits, cache = prefill_prompts(
            self.params, tokens, lengths, features, sources.astype(np.int32), cfg=self.cfg, slots=slots
        )
        return Prefilled(logits, cache, lengths, all_ids(B, self.cfg.text.vocab))

    def prefill_after(
        self, rests: Sequence[np.ndarray], B: int, prefix: PrefixCache, *, joined: bool
    ) -> Prefilled:
        """Prefills what follows a prefix, padded to B rows; their caches hold the prefix if `joined`."""
        length = next(n for n in self.shapes.rest_lengths if n >= max(map(len, rests)))
        tokens, lengths = self._padded(rests, B, length)
        slots = self.shapes.slots if joined else length
        static: dict[str, Any] = {'cfg': self.cfg, 'slots': slots, 'joined': joined}
        logits, cache = prefill_after(self.params, tokens, lengths, prefix, **static)
        return Prefilled(logits, cache, lengths + int(prefix.lengths[0]), all_ids(B, self.cfg.text.vocab))

    def _padded(self, rows: Sequence[np.ndarray], B: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids -> BT int32 and their lengths B; rows beyond hold a single token."""
        tokens = np.full((B, length), self.cfg.pad, np.int32)
        lengths = np.ones(B, np.int32)
        for b, ids in enumerate(rows):
            tokens[b, : len(ids)] = ids
            lengths[b] = len(ids)
        return tokens, lengths

    def first_tokens(self, prefilled: Prefilled) -> NewTokens:
        """The likeliest first tokens after prompts, B."""
        new, _ = select_first(prefilled.logits, prefilled.lengths, prefilled.allowed, None, top=None)
        return new

    def first_token(
        self, prefilled: Prefilled, source: int, settings: RowSettings, selection: Selection
    ) -> tuple[NewTokens, RowSettings]:
        """The first token of an answer with settings, B = 1, and the settings with it, on the device."""
        logits = take_logits(prefilled.logits, np.int32(source))
        whole = on_device(settings, self.mesh)
        lengths, allowed = (x[source : source + 1] for x in (prefilled.lengths, prefilled.allowed))
        new, used = select_first(logits, lengths, allowed, selection.part(whole), top=selection.top)
        return new, used if selection is Selection.PROCESSED else whole

    def put(
        self, lane: int, rows: Sequence[int], prefilled: Prefilled, tokens: Array, positions: Sequence[int]
    ) -> None:
        """Puts prefilled rows, with their tokens at these positions, into rows of a lane, if it has them."""
        numbers, at = np.array(rows, np.int32), np.array(positions, np.int32)
        self._set_lane(lane, put_rows(self.lane(lane), numbers, prefilled.cache, tokens, at))

    def put_token(self, place: Place, new: NewTokens) -> None:
        """Makes a token, B = 1, the newest of a row of a lane."""
        lane, row = place
        self._set_lane(lane, put_token(self.lane(lane), np.int32(row), new.tokens))

    def put_settings(self, place: Place, settings: RowSettings) -> None:
        """Puts the settings of one answer into a row of a lane."""
        lane, row = place
        self.settings[lane] = put_settings(self.settings[lane], np.int32(row), settings)

    def move(self, origin: Place, place: Place, position: int, prefix: int = 0) -> None:
        """Copies a row with its newest token, at `position`, and its settings into a row of another lane.

        If the first `prefix` tokens are a prefix, only half as many slots as rows of level 0 have are copied,
        those after it.
        """
        lane, row = origin
        target, new_row = place
        if prefix:
            half = self.shapes.slots // 2
            cache, token = take_after_prefix(self.lane(lane), np.int32(row), np.int32(prefix), slots=half)
        else:
            cache, token = take_row(self.lane(lane), np.int32(row))
        rows, positions = np.array([new_row], np.int32), np.array([position], np.int32)
        self._set_lane(target, put_rows(self.lane(target), rows, cache, token, positions))
        self.put_settings(place, take_settings(self.settings[lane], np.int32(row)))

    def halve(self) -> None:
        """Copies the newest tokens and settings of the largest lane to every second row of the halved one."""
        largest, halved = self.shapes.lane_of(0), self.shapes.halved_lane
        assert halved is not None
        newest, settings = self.newest[halved], self.settings[halved]
        self.newest[halved] = put_alternately(newest, self.newest[largest])
        self.settings[halved] = put_alternately(settings, self.settings[largest])

    def rewind(self, rows: Sequence[tuple[Place, int, int]]) -> None:
        """Returns rows to earlier tokens at these positions, which become their newest."""
        for lane in {lane for (lane, _), _, _ in rows}:
            found = [(row, token, position) for (at, row), token, position in rows if at == lane]
            for first in range(0, len(found), FEW):
                numbers, tokens, positions = zip(*found[first : first + FEW], strict=True)
                rewound, self.settings[lane] = rewind_rows(
                    self.lane(lane),
                    self.settings[lane],
                    few_rows(numbers, self.shapes.sizes[lane][0]),
                    few_numbers(tokens),
                    few_numbers(positions),
                )
                self._set_lane(lane, rewound)

    def prefix_of(self, prefilled: Prefilled, source: int, length: int) -> PrefixCache:
        """The first tokens of a prefilled row, as a prefix of other prompts."""
        slots = self.shapes.prefix_slots_for(length)
        cache = take_prefix(prefilled.cache, np.int32(source), slots=slots)
        return PrefixCache(cache.k, cache.v, np.array([length], np.int32))

    def step(
        self,
        group: Sequence[int],
        active: Sequence[np.ndarray],
        selection: Selection,
        prefix: PrefixCache | None = None,
        allowed: Mapping[int, np.ndarray] | None = None,
    ) -> NewTokens:
        """Decodes one token of each row of some lanes; rows that are not `active` become free.

        `allowed` has, by the numbers of rows counted over these lanes, the only ids that some may select, W.
        """
        lanes = [self.lane(lane) for lane in group]
        caches, tokens, positions = ([getattr(lane, name) for lane in lanes] for name in Lane.__annotations__)
        logits, caches = decode_lanes(self.params, caches, tokens, positions, prefix, cfg=self.cfg)
        settings = [selection.part(self.settings[lane]) for lane in group] if selection else None
        top = selection.top
        limited = self._limited(logits, allowed) if allowed else logits
        tokens, positions, settings, new = select_next(limited, positions, active, settings, top=top)
        if allowed and top is not None:
            new = dataclasses.replace(report(logits, new.tokens, top=top), scores=new.scores)
        for i, lane in enumerate(group):
            self._set_lane(lane, Lane(caches[i], tokens[i], positions[i]))
            if selection is Selection.PROCESSED:
                self.settings[lane] = settings[i]
        return new

    def _limited(self, logits: Array, allowed: Mapping[int, np.ndarray]) -> Array:
        """Logits BV -> the same with -inf for the ids that are not allowed in some rows."""
        numbers = [*allowed]
        for first in range(0, len(numbers), FEW):
            rows = numbers[first : first + FEW]
            sets = few_sets([allowed[n] for n in rows], self.cfg.text.vocab)
            logits = allow_only(logits, few_rows(rows, len(logits)), sets)
        return logits


def on_device(tree: Any, mesh: Any) -> Any:
    """Arrays whose first axis is the batch -> the same on the device, or divided over the mesh."""
    return jax.tree.map(lambda x: jax.device_put(x, sharding(row_letters(x), x.shape, mesh)), tree)


def zeros_on_device(shapes: Any, mesh: Any) -> Any:
    """Arrays of zeros of these shapes, whose first axis is the batch, each in a buffer of its own."""

    def create(x: jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros(x.shape, x.dtype, device=x.sharding)

    return jax.tree.map(create, placed_shapes(shapes, mesh))


def placed_shapes(tree: Any, mesh: Any) -> Any:
    """The shapes of arrays whose first axis is the batch, as they are placed on the device or mesh."""

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return placed_shape(x, 'BSKH' if len(x.shape) == 4 else row_letters(x), mesh=mesh)

    return jax.tree.map(placed, tree)
