"""Compiles the 7B's programs for a device that need not be present, and analyses the compiled text."""

import dataclasses
import math
import os
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

import vipllava_jax as vj
from tests.training.optimizers import optimizer
from vipllava_jax.arrays import flat, nested
from vipllava_jax.data.examples import Examples
from vipllava_jax.engine.programs import Lane
from vipllava_jax.generation import decoding
from vipllava_jax.generation.beams.programs import beam_chunk, prefill_beams
from vipllava_jax.generation.beams.state import BeamRules
from vipllava_jax.generation.prefix import PrefixArrays
from vipllava_jax.generation.state import State, eos_rows, map_state, row_letters
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.model import llama
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.vipllava import VipLlava
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.sharding import sharding as sharding_of
from vipllava_jax.training import lora
from vipllava_jax.training.parts import split
from vipllava_jax.training.step import init_state, make_step

CFG = dataclasses.replace(vj.VIP_LLAVA_7B, attention='xla')
# As wide as the 7B, and faster to compile; another layer adds only its weights and its cache to the memory.
SHALLOW = dataclasses.replace(
    CFG,
    vision=dataclasses.replace(CFG.vision, layers=4),
    text=dataclasses.replace(CFG.text, layers=2),
    feature_layers=(3, 2, 2, 1, 0),
)
DEPTH = 8  # layers of a decoder that stands for a deeper one
ROWS = 4  # per training step
PREFIX = 640  # slots of the beginning that rows share
SLOTS, PROMPT = 1024, 704  # neither, times 8 and times a width, is the size of a weight matrix
BYTES = {'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1}
FREE = ('get-tuple-element', 'parameter', 'tuple', 'constant', 'bitcast')


def with_layers(cfg: vj.Config, layers: int = DEPTH) -> vj.Config:
    """The model with fewer layers in its decoder."""
    return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, layers=layers))


class Instruction(NamedTuple):
    """A line of a computation: its operation, and its results as (shape, bytes, whether in fast memory)."""

    op: str
    results: list[tuple[str, int, bool]]
    line: str


def device_of(platform: str, name: str = '', **options: str) -> jax.sharding.Sharding:
    """A device of a platform that this machine need not have."""
    return jax.sharding.SingleDeviceSharding(devices_of(platform, name, **options)[0])


def devices_of(platform: str, name: str = '', **options: str) -> list[Any]:
    """The devices of a platform that this machine need not have."""
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # other pytest workers load libtpu, too
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no metadata server to query
    return [*topologies.get_topology_desc(name, platform=platform, **options).devices]


def place(tree: Any, sharding: Any) -> Any:
    """Shapes placed on a device or a mesh, with one sharding for all, by their rows, or a tree of formats."""
    if isinstance(sharding, Mesh):
        sharding = jax.tree.map(lambda x: sharding_of(row_letters(x), x.shape, sharding), tree)
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _, same=sharding: same, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)


def weights(cfg: vj.Config, quantize: str | None) -> Any:
    """The shapes of the params in bfloat16, with the decoder's large weights quantised if requested."""
    return nested(quantize_leaves(flat(vj.abstract(cfg, jnp.bfloat16)), quantize))


def state(cfg: vj.Config, B: int) -> State:
    def zeros():
        cache = llama.Cache.empty(cfg.text, B, SLOTS, jnp.bfloat16)
        ids, rows = jnp.zeros((B, SLOTS), int), jnp.zeros(B, int)
        eos = jnp.asarray(eos_rows(cfg.eos, B))
        return State(cache, ids, rows, rows, jnp.zeros(B, bool), eos, None)

    return jax.eval_shape(zeros)


def place_state(state: State, mesh: Mesh) -> State:
    """The shapes of a state with the shardings of its letters."""

    def placed(x: Any, letters: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(letters, x.shape, mesh))

    return map_state(placed, state)


def decode(params: Any, cfg: vj.Config, B: int, where: jax.sharding.Sharding | Mesh) -> Any:
    rows = place_state(state(cfg, B), where) if isinstance(where, Mesh) else place(state(cfg, B), where)
    return decoding.decode_chunk.trace(params, rows, cfg=cfg, steps=8).lower().compile()


def prefix(cfg: vj.Config, A: int) -> PrefixCache:
    def zeros() -> PrefixCache:
        shared = llama.Cache.empty(cfg.text, A, PREFIX, jnp.bfloat16)
        return PrefixCache(shared.k, shared.v, jnp.zeros(A, jnp.int32))

    return jax.eval_shape(zeros)


def decode_after_prefix(params: Any, cfg: vj.Config, B: int, device: jax.sharding.Sharding) -> Any:
    """The program of a chunk of B rows that share a prefix."""
    rows, shared = place((state(cfg, B), prefix(cfg, 1)), device)
    return decoding.decode_chunk.trace(params, rows, shared, cfg=cfg, steps=8).lower().compile()


def lane(cfg: vj.Config, rows: int, cache: tuple[int, int], device: jax.sharding.Sharding) -> Lane:
    """The rows of an engine in a cache of so many rows and slots."""

    def zeros() -> Lane:
        newest = jnp.zeros(rows, jnp.int32)
        return Lane(llama.Cache.empty(cfg.text, *cache, jnp.bfloat16), newest, newest)

    return place(jax.eval_shape(zeros), device)


def prefill_after_prefix(params: Any, cfg: vj.Config, B: int, device: jax.sharding.Sharding) -> Any:
    """The program that prefills what follows a prefix that B rows share."""
    ids, counts = jax.ShapeDtypeStruct((B, 96), jnp.int32), jax.ShapeDtypeStruct((B,), jnp.int32)
    start = PrefixArrays(jax.ShapeDtypeStruct((1, PREFIX), jnp.int32), prefix(cfg, 1))
    eos = jax.eval_shape(lambda: jnp.asarray(eos_rows(cfg.eos, B)))
    batch, eos, start = place((Batch(ids, counts, pictures(cfg, B, 0), counts), eos, start), device)
    traced = decoding.prefill_batch.trace(
        params, batch, None, eos, None, start, cfg=cfg, slots=SLOTS, share_keys=True
    )
    return traced.lower().compile()


def search_beams(params: Any, cfg: vj.Config, B: int, W: int, device: jax.sharding.Sharding) -> Any:
    """The program of a chunk of B rows of W beams, which share their prompts, and the shape of the cache."""

    def start(params: Any) -> Any:
        pixels = jnp.zeros(pictures(cfg, B, 0).shape)
        batch = Batch(np.zeros((B, 64), np.int32), np.ones(B, np.int32), pixels, np.zeros(B, np.int32))
        rules = BeamRules(np.zeros(B, np.int32), np.zeros(B, np.float32), np.zeros(B, np.int32))
        eos, static = eos_rows(cfg.eos, B), {'slots': 64 + SLOTS, 'width': W, 'candidates_per_beam': 2}
        return prefill_beams(params, batch, None, eos, None, rules, cfg=cfg, share_keys=True, **static)

    beams, shared, *_ = jax.eval_shape(start, params)
    beams, shared = place((beams, shared), device)
    return beam_chunk.trace(params, beams, shared, cfg=cfg, steps=8).lower().compile(), beams.state.cache


def prefill(params: Any, cfg: vj.Config, B: int, where: jax.sharding.Sharding | Mesh) -> Any:
    ids, counts = jax.ShapeDtypeStruct((B, PROMPT), jnp.int32), jax.ShapeDtypeStruct((B,), jnp.int32)
    batch = place(Batch(ids, counts, pictures(cfg, B), counts), where)
    eos = place(jax.eval_shape(lambda: jnp.asarray(eos_rows(cfg.eos, B))), where)
    return decoding.prefill_batch.trace(params, batch, None, eos, cfg=cfg, slots=SLOTS).lower().compile()


def vision(params: Any, cfg: vj.Config, B: int, sharding: jax.sharding.Sharding) -> Any:
    def features(params, images):
        return VipLlava(cfg).apply({'params': params}, images, method='features')

    return jax.jit(features).trace(params, place(pictures(cfg, B), sharding)).lower().compile()


def train(trains: tuple[str, ...], sharding: jax.sharding.Sharding, *targets: str) -> Any:
    """A training step of a bfloat16 model with one layer, with adapters on the targets if there are any."""
    cfg = with_layers(SHALLOW, 1)
    adamw = optimizer(1e-4, 100, moment_dtype='bfloat16')

    def initial() -> tuple[Any, Any]:
        params = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), vj.abstract(cfg, jnp.bfloat16))
        if 'lora' in trains:
            key = jax.random.key(0)
            params = lora.add(params, cfg, rank=128, alpha=256, key=key, targets=targets, dropout=0.05)
        trainable, frozen = split(params, trains)
        return init_state(trainable, adamw, jnp.bfloat16), frozen

    ids, counts = (jax.ShapeDtypeStruct((1, ROWS, *T), jnp.int32) for T in ((PROMPT,), ()))
    pixels = pictures(cfg, ROWS)
    batch = Examples(ids, ids, jax.ShapeDtypeStruct((1, *pixels.shape), jnp.bfloat16), counts)
    step = make_step(cfg, adamw, apply_dropout=lora.with_dropout if 'lora' in trains else None)
    arguments = place((*jax.eval_shape(initial), batch, jax.eval_shape(lambda: jax.random.key(0))), sharding)
    return step.trace(*arguments).lower().compile()


def pictures(cfg: vj.Config, B: int, I: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((B, I, cfg.vision.image_size, cfg.vision.image_size, 3), jnp.float32)


def size_in_bytes(tree: Any) -> int:
    """The size of a tree of arrays in bytes, on each device of their mesh."""

    def size(x: Any) -> int:
        shape = x.sharding.shard_shape(x.shape) if getattr(x, 'sharding', None) else x.shape
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def collectives(text: str) -> Counter[str]:
    """The numbers of exchanges between devices in the text of a program."""
    names = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast'
    return Counter(re.findall(rf' ({names})(?:-start)?\(', text))


def bytes_in_use(
    compiled: Any, params: Any, cfg: vj.Config, cache: llama.Cache | None = None, whole: vj.Config = CFG
) -> int:
    """Bytes on a device while a program of the `whole` model runs, including weights that it does not read.

    The weights of the layers that `cfg` lacks are added, and their part of the cache if it has one.
    """
    m = compiled.memory_analysis()
    running = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    formats = jax.tree.leaves(compiled.input_formats[0][0])
    unused = [w for w, f in zip(jax.tree.leaves(params), formats, strict=True) if f.layout is None]
    layer = size_in_bytes(params['llama']['layers_0'])
    if cache is not None:
        layer += size_in_bytes((cache.k[0], cache.v[0]))
    missing = (whole.text.layers - cfg.text.layers) * layer
    missing += (whole.vision.layers - cfg.vision.layers) * size_in_bytes(params['clip']['layers_0'])
    return running - m.alias_size_in_bytes + size_in_bytes(unused) + missing


def entry(text: str) -> list[Instruction]:
    return instructions(text, re.search(r'\nENTRY %?([\w.\-]+)', text)[1])


def loop(text: str) -> list[Instruction]:
    """The body of a program's loop over tokens, or nothing if it has no loop."""
    body = re.search(r' while\(.*?body=%?([\w.\-]+)', text)
    return instructions(text, body[1]) if body else []


def instructions(text: str, computation: str) -> list[Instruction]:
    """The instructions of a computation, without those that have no effect at run time."""
    body = re.search(r'\n(?:ENTRY )?%?' + re.escape(computation) + r' \(.*?\n\}', text, re.DOTALL)[0]
    found = re.finditer(r'\n\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\((.*)', body)
    return [Instruction(m[2], results(m[1]), m[3]) for m in found if m[2] not in FREE]


def results(shapes: str) -> list[tuple[str, int, bool]]:
    """'(bf16[1,1024]{1,0:T(8,128)S(1)}, u32[])' -> [('bf16[1,1024]', 2048, True), ('u32[]', 4, False)]."""
    found = re.findall(r'((\w+)\[([\d,]*)\])(\{[^}]*\})?', shapes)
    return [
        (shape, BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(',')))), 'S(1)' in layout)
        for shape, dtype, dims, layout in found
    ]


def copies(text: str) -> list[str]:
    """Copies and transposes anywhere, and slices outside of fusions, of 1 MiB or more.

    Transfers to and from the fast memory of a TPU are not included, nor are int8 copies that keep the order
    of axes: a product on a TPU retiles int8 like bfloat16.
    """
    orders = dict(re.findall(r'%([\w.\-]+) = s8\[[\d,]*\]\{([\d,]+)', text))
    inside = re.findall(r' = (\w+\[[\d,]*\])\{?([\d,]*)\S* (copy|transpose)\(%?([\w.\-]+)', text)
    copied = [
        shape
        for shape, order, op, of in inside
        if op == 'transpose' or not shape.startswith('s8') or orders.get(of) != order
    ]
    outside = [x for x in entry(text) + loop(text) if x.op in ('copy', 'slice', 'dynamic-slice')]
    return [shape for shape in copied + [x.results[0][0] for x in outside] if results(shape)[0][1] >= 2**20]


def copied_weights(text: str, params: Any) -> list[str]:
    """The copies and transposes of arrays with the size of a weight matrix, whatever their shape."""
    matrices = {w.size for w in jax.tree.leaves(params) if w.ndim > 1}
    inside = re.findall(r' = \w+\[([\d,]+)\]\S* (?:copy|transpose)\(', text)
    return [dims for dims in inside if math.prod(map(int, dims.split(','))) in matrices]


def bytes_copied_back(computation: list[Instruction]) -> int:
    """The bytes copied back from the fast memory: a cache that is not updated in place."""
    transfers = [x.results for x in computation if x.op == 'copy-start']
    return sum(to[1] for to, of, *_ in transfers if of[2] and not to[2])


def large_results(computation: list[Instruction], cache: Any) -> list[str]:
    """Results as large as an int8 weight, except for the caches that are updated in place."""
    cache_shapes = {str(x.shape).replace(' ', '').strip('(,)') for x in jax.tree.leaves(cache)}
    working = ('fusion', 'convert', 'multiply', 'broadcast')
    fused = [result for x in computation if x.op in working for result in x.results]
    return [
        shape for shape, size, _ in fused if size >= 2**24 and shape.split('[')[1][:-1] not in cache_shapes
    ]


def kernel_count(computation: list[Instruction]) -> int:
    """The number of kernels: instructions except for transfers and tuples."""
    return sum(not x.op.endswith(('-start', '-done')) and 'ConcatBitcast' not in x.line for x in computation)
