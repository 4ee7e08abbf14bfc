"""Compares logits with transformers at 7B size with random weights, and times loading and converting.

    python scripts/parity_7b.py --photo photo.jpg --processor FOLDER --work /tmp/7b --out parity.json

FOLDER holds a tokenizer and the processor files in the Hub's format. Every step runs in a separate process,
on one GPU; `--work` needs 45 GB of disk space. Nothing is downloaded. `--small` runs all steps on a model of
a few megabytes.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from vipllava_jax.benchmark.memory import HostMemory

QUESTION = 'What is within the red rectangle?'
STEPS = ('make', 'peer16', 'peer32', 'load_pytorch', 'convert', 'load_converted', 'ours')


def timed(step, size: float) -> dict:
    """Runs a step that reads or writes `size` GB; returns its time, rate and peak of anonymous memory."""
    with HostMemory() as memory:
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
    peak = round(memory.peak / 2**30, 3)
    return {'seconds': round(seconds, 2), 'GB/s': round(size / seconds, 2), 'peak anonymous GiB': peak}


def folder_gb(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e9


def make(args: argparse.Namespace) -> dict:
    """Writes a PyTorch folder of random bfloat16 weights by exporting a converted folder."""
    import jax
    import jax.numpy as jnp

    import vipllava_jax as vj
    from vipllava_jax import checkpoint
    from vipllava_jax.convert.to_torch import export

    cfg = vj.VIP_LLAVA_7B
    if args.small:
        text = dataclasses.replace(cfg.text, width=64, layers=2, heads=4, kv_heads=4, head_size=16, mlp=96)
        vision = dataclasses.replace(cfg.vision, width=32, heads=2, mlp=48)
        cfg = dataclasses.replace(cfg, text=text, vision=vision)
    params = vj.init(jax.random.key(0), cfg, jnp.bfloat16)
    shutil.rmtree(args.work / 'random', ignore_errors=True)
    checkpoint.save(args.work / 'random', params, cfg, files_from=args.processor)
    del params
    shutil.rmtree(args.work / 'pytorch', ignore_errors=True)
    out = timed(lambda: export(args.work / 'random', args.work / 'pytorch'), folder_gb(args.work / 'random'))
    shutil.rmtree(args.work / 'random')
    return {'export': out, 'folder GB': round(folder_gb(args.work / 'pytorch'), 2)}


def inputs(args: argparse.Namespace):
    import vipllava_jax as vj
    from vipllava_jax.inputs.processor import Processor

    picture = vj.draw(args.photo, [vj.Mark('rectangle', box=(0.2, 0.2, 0.6, 0.7))])
    return Processor.load(args.work / 'pytorch')(QUESTION, picture)


def peer(args: argparse.Namespace, bits: int) -> dict:
    """Saves transformers' logits for a prompt and its greedy continuation, for `ours` to compare."""
    import numpy as np
    import torch
    from transformers import VipLlavaForConditionalGeneration

    batch = inputs(args)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    model = (
        VipLlavaForConditionalGeneration.from_pretrained(args.work / 'pytorch', dtype=dtype).to(device).eval()
    )
    n = int(batch.lengths[0])
    tokens = torch.tensor(batch.tokens[:, :n], dtype=torch.long, device=device)
    pixels = torch.tensor(batch.images[0], device=device).permute(0, 3, 1, 2).to(dtype)
    file = args.work / 'continuation.npy'
    with torch.no_grad():
        if bits == 16:
            sequence = model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=pixels,
                max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            np.save(file, sequence.cpu().numpy())
        sequence = torch.tensor(np.load(file), device=device)
        logits = model(input_ids=sequence, pixel_values=pixels).logits[0].float().cpu().numpy()
    np.save(args.work / f'logits{bits}.npy', logits)
    return {'largest logit': float(np.abs(logits).max()), 'tokens': logits.shape[0]}


def load_pytorch(args: argparse.Namespace) -> dict:
    return _load(args.work / 'pytorch')


def load_converted(args: argparse.Namespace) -> dict:
    return _load(args.work / 'converted')


def _load(folder: Path) -> dict:
    import jax

    import vipllava_jax as vj

    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # initializes the device before the measurement
    size = folder_gb(folder)
    return timed(lambda: jax.block_until_ready(vj.load(folder).params), size)


def convert(args: argparse.Namespace) -> dict:
    from vipllava_jax.convert.to_flax import convert

    shutil.rmtree(args.work / 'converted', ignore_errors=True)
    return timed(
        lambda: convert(args.work / 'pytorch', args.work / 'converted'), folder_gb(args.work / 'pytorch')
    )


def ours(args: argparse.Namespace) -> dict:
    """Compares our logits for the same tokens with transformers' in bfloat16 and float32."""
    import jax
    import numpy as np

    import vipllava_jax as vj

    batch = inputs(args)
    model = vj.load(args.work / 'converted')
    sequence = np.load(args.work / 'continuation.npy')
    forward = jax.jit(vj.forward, static_argnames='cfg')
    logits = np.asarray(forward(model.params, sequence, batch.images, cfg=model.cfg))[0]
    theirs, exact = np.load(args.work / 'logits16.npy'), np.load(args.work / 'logits32.npy')

    def error(a, b):
        return round(float(np.linalg.norm(a - b) / np.linalg.norm(b)), 5)

    n = int(batch.lengths[0])
    ahead = slice(n - 1, n + 63)
    continuation = sequence[0, n:]
    answer = vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=64, eos=())
    return {
        'ours bf16 against transformers bf16': error(logits, theirs),
        'ours bf16 against transformers float32': error(logits, exact),
        'transformers bf16 against its float32': error(theirs, exact),
        'greedy agreement along the continuation': float((logits[ahead].argmax(-1) == continuation).mean()),
        'float32 greedy agreement of transformers bf16': float(
            (exact[ahead].argmax(-1) == continuation).mean()
        ),
        'float32 greedy agreement of ours': float(
            (exact[ahead].argmax(-1) == logits[ahead].argmax(-1)).mean()
        ),
        'tokens generated alike from the start': int((np.cumprod(answer.tokens[0] == continuation)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ('photo', 'processor', 'work', 'out'):
        parser.add_argument(f'--{name}', type=Path, required=True)
    parser.add_argument('--small', action='store_true')
    parser.add_argument('--step', choices=STEPS, help='only this one, in this process')
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.step:
        steps = {**globals(), 'peer16': lambda a: peer(a, 16), 'peer32': lambda a: peer(a, 32)}
        args.out.write_text(json.dumps(steps[args.step](args)))
        return
    results = {}
    for i, step in enumerate(STEPS, 1):
        print(f'{i}/{len(STEPS)} {step} …', file=sys.stderr, flush=True)
        begin = time.perf_counter()
        part = args.work / f'{step}.json'
        part.unlink(missing_ok=True)
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--step', step, '--out', part])
        results[step] = json.loads(part.read_text()) if done.returncode == 0 else 'failed'
        print(step, f'{time.perf_counter() - begin:.0f} s', json.dumps(results[step]), flush=True)
        args.out.write_text(json.dumps(results, indent=2))


if __name__ == '__main__':
    main()
