r"""Measures training steps on a mesh of devices, on random weights and rows: no model and no data are needed.

    python scripts/train_mesh.py --mesh fsdp=4 --batch 32 --remat products
    python scripts/train_mesh.py --mesh data=4 --recipe lora --batch 64 --accumulate 2 --remat products
    python scripts/train_mesh.py --recipe lora --batch 16 --accumulate 2 --remat products   # one device

Each row has a picture, and `--tokens` tokens. Prints a JSON object: the median time of a step, tokens per
second, operations per second of each device, the same as a fraction of those of a large matrix product (MFU),
which is measured first, and the largest peak of memory of a device. `--preset tiny` runs anywhere, also with
XLA_FLAGS=--xla_force_host_platform_device_count=4 on a CPU.
"""

import argparse
import json
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

WARM_UP = 3  # the first steps, not measured, in which programs are compiled and tuned


def arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--preset', choices=('tiny', '7b', '13b'), default='7b')
    parser.add_argument('--recipe', choices=('finetune', 'lora', 'projector'), default='finetune')
    parser.add_argument('--mesh', help='as for vipllava train; default: one device')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--accumulate', type=int, default=1)
    parser.add_argument('--tokens', type=int, default=1024)
    parser.add_argument('--remat', choices=('none', 'products', 'layers'), default='layers')
    parser.add_argument('--dtype', default='bfloat16', help='of the computation')
    parser.add_argument('--param-dtype', default='float32', help='of the trained weights')
    parser.add_argument('--moment-dtype', default='float32')
    parser.add_argument('--steps', type=int, default=10, help='how many are measured, after the first few')
    return parser.parse_args()


def random_params(settings: Any, cfg: Any, mesh: Any) -> Any:
    """Random params in the dtypes of a run, created with the shardings of the mesh."""
    import jax

    from vipllava_jax.arrays import nested
    from vipllava_jax.model.params import specs
    from vipllava_jax.training.parts import in_trained_part
    from vipllava_jax.weight_sharding import leaf_sharding

    @partial(jax.jit, static_argnums=(1, 2, 3, 4))
    def normal(key: Any, std: float, shape: Any, dtype: str, at: Any) -> Any:
        return jax.lax.with_sharding_constraint((std * jax.random.normal(key, shape)).astype(dtype), at)

    def leaf(i: int, path: str, spec: Any) -> Any:
        dtype = settings.param_dtype if in_trained_part(path, settings.trains) else settings.dtype
        std = spec.fan_in**-0.5 if spec.contracted else 0.02
        at = leaf_sharding(path, jax.ShapeDtypeStruct(spec.shape, dtype), mesh)
        return normal(jax.random.key(i, impl='rbg'), std, spec.shape, dtype, at)

    return nested((path, leaf(i, path, spec)) for i, (path, spec) in enumerate(specs(cfg).items()))


def random_batch(settings: Any, cfg: Any, tokens: int) -> Any:
    """The stacked micro-batches of a step; each row is a picture and text, all of it targets."""
    import numpy as np

    from vipllava_jax.data.conversations import IGNORE
    from vipllava_jax.data.examples import Examples

    rng, pictures, side = np.random.default_rng(0), cfg.vision.patches, cfg.vision.image_size
    shape = settings.accumulate, settings.batch // settings.accumulate
    ids = rng.integers(3, min(cfg.text.vocab, cfg.image_token), (*shape, tokens), np.int32)
    ids[..., 0], ids[..., 1 : 1 + pictures] = cfg.bos, cfg.image_token
    targets = np.full_like(ids, IGNORE)
    targets[..., pictures:-1] = ids[..., pictures + 1 :]
    pixels = rng.integers(0, 256, (*shape, 1, side, side, 3), np.uint8)
    return Examples(ids, targets, pixels, np.ones(shape, np.int32))


def measure(args: Any) -> dict[str, Any]:
    """Takes the steps of a run with these arguments -> what was measured."""
    import jax

    from vipllava_jax import ceilings
    from vipllava_jax.benchmark.subject import PRESETS
    from vipllava_jax.model.cost import Costs
    from vipllava_jax.training.prepare import training_mesh
    from vipllava_jax.training.settings_file import read_settings
    from vipllava_jax.training.shardings import put_batch

    names = ('recipe', 'mesh', 'batch', 'accumulate', 'remat', 'dtype', 'param_dtype', 'moment_dtype')
    given = {name: getattr(args, name) for name in names}
    settings = read_settings(model='random', data='random', output='none', steps=1000, **given)
    cfg, mesh = PRESETS[args.preset], training_mesh(settings)
    devices = list(mesh.devices.flat) if mesh else jax.local_devices()[:1]
    peak = ceilings.matmul(args.dtype)
    step, state, frozen, adapters = prepare(settings, cfg, mesh)
    state_bytes = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state)
    )
    batch = put_batch(random_batch(settings, cfg, args.tokens), mesh)
    seconds, losses = take_steps(step, state, frozen, batch, args.steps)
    median = statistics.median(seconds[WARM_UP:])
    lengths = [args.tokens] * settings.batch
    flop = Costs(cfg).training(lengths, settings.batch, settings.trains, adapters)
    memory = [(device.memory_stats() or {}).get('peak_bytes_in_use', 0) for device in devices]
    return {
        **vars(args),
        'device': devices[0].device_kind,
        'devices': len(devices),
        'state_bytes_per_device': state_bytes,
        'compile_seconds': round(seconds[0], 1),
        'step_seconds': round(median, 4),
        'fastest_step_seconds': round(min(seconds[WARM_UP:]), 4),
        'tokens_per_second': round(sum(lengths) / median, 1),
        'tflops_per_device': round(flop / median / len(devices) / 1e12, 2),
        'matmul_tflops': round(peak / 1e12, 2),
        'mfu': round(flop / median / len(devices) / peak, 4),
        'peak_gb_per_device': round(max(memory) / 1e9, 2),
        'programs': step._cache_size(),
        'losses': [losses[0], losses[-1]],
    }


def prepare(settings: Any, cfg: Any, mesh: Any) -> tuple[Any, Any, Any, int]:
    """The step of a run, its first state, the frozen weights, and the number of weights of adapters."""
    import jax

    from vipllava_jax.arrays import flat
    from vipllava_jax.inputs.pixels import ImageSettings
    from vipllava_jax.training import lora
    from vipllava_jax.training.optimizer import Optimizer
    from vipllava_jax.training.parts import adapted_weight, split
    from vipllava_jax.training.shardings import state_shardings
    from vipllava_jax.training.step import init_state, make_step

    params, optimizer = random_params(settings, cfg, mesh), Optimizer(settings)
    has_adapters = 'lora' in settings.trains
    if has_adapters:
        pair = dict(rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout)
        params = lora.add(params, cfg, key=jax.random.key(0), **pair)  # type: ignore[arg-type]
    trainable, frozen = split(params, settings.trains)
    state = init_state(trainable, optimizer, settings.param_dtype, mesh)
    if mesh is None:
        state = jax.device_put(state, jax.local_devices()[0])
    step = make_step(
        cfg,
        optimizer,
        remat=settings.remat,
        dtype=settings.dtype,
        apply_dropout=lora.with_dropout if has_adapters else None,
        normalize=ImageSettings().normalize,
        shardings=state_shardings(state, mesh) if mesh else None,
    )
    return step, state, frozen, sum(w.size for path, w in flat(trainable) if adapted_weight(path))


def take_steps(step: Any, state: Any, frozen: Any, batch: Any, count: int) -> tuple[list[float], list[float]]:
    """The seconds and the loss of each step: WARM_UP ones, and `count` more."""
    import jax

    key, pending, begin = jax.random.key(1), None, time.perf_counter()
    seconds: list[float] = []
    losses: list[float] = []
    for i in range(WARM_UP + count + 1):
        state, metrics = step(state, frozen, batch, key)
        if i < WARM_UP:  # compile and tune, one step at a time
            jax.block_until_ready(metrics)
        if pending is not None:  # the device computes the next step meanwhile, as in a run
            losses.append(float(pending.loss))
            seconds.append(time.perf_counter() - begin)
            begin += seconds[-1]
            print(f'{seconds[-1]:.3f} s, loss {losses[-1]:.4f}', file=sys.stderr, flush=True)
        pending = metrics
    return seconds, losses


def main() -> None:
    args = arguments()
    from vipllava_jax.cli.memory import reserve

    reserve()
    try:
        print(json.dumps(measure(args)))
    except ValueError as error:
        sys.exit(f'train_mesh: {error}')


if __name__ == '__main__':
    main()
