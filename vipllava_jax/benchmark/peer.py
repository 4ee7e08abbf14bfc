"""transformers on the same weights and prompts: its default way, and a static cache with torch.compile.

Every weight goes over as the converter's table says, from our device through the host, so both sides hold the
same numbers, each in its own layout.
"""

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers
from packaging.version import parse
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, CompileConfig, LogitsProcessor, StaticCache
from vipllava_convert.table import canonical, leaves, reverse
from vipllava_convert.to_flax import rearranged

from vipllava_jax.benchmark.measure import STEPS
from vipllava_jax.benchmark.subject import Subject
from vipllava_jax.benchmark.timing import Run
from vipllava_jax.hugging_face import to_hugging_face
from vipllava_jax.inputs.processor import Batch, bucket

CACHE = 'cache' if parse(transformers.__version__) >= parse('5.24') else 'past_key_values'  # its argument


class Answers:
    """What both ways have: answers of a fixed length, by `generate`."""

    def __init__(self, subject: Subject, model: Any):
        self.subject, self.model = subject, model

    def generate(self, batch: int, tokens: int) -> Run:
        """As ours, from the host to the host."""
        prompt = self.subject.prompt(batch, tokens)
        slots = bucket(tokens + 2 * STEPS)  # those of the decode line of this context
        return self.timed(lambda: self.answer(self.inputs(prompt), STEPS, slots).cpu())

    def decode(self, batch: int, context: int) -> Run:
        """Prompts of `context` tokens and STEPS more -> the seconds of one of these."""
        inputs = self.inputs(self.subject.prompt(batch, context))

        def run() -> float:
            clock = Clock(self.synchronize, STEPS)
            self.answer(inputs, STEPS + 1, bucket(context + STEPS), logits_processor=[clock])
            return (clock.times[-1] - clock.times[0]) / STEPS

        return run

    def release(self) -> None:
        """Hands memory that is free back to the device, where the other side may need it."""
        gc.collect()
        torch.cuda.empty_cache()

    def answer(self, inputs: dict[str, Tensor], new: int, slots: int, **settings: Any) -> Tensor:
        """The prompts, and as many new tokens each as asked for; what has slots has so many."""
        with torch.no_grad():
            out = self.model.generate(**inputs, **settings, max_new_tokens=new, do_sample=False)
        assert out.shape[1] == inputs['input_ids'].shape[1] + new
        return out

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The same rows on the model's device, without the padding of our shapes."""
        device, dtype = self.model.device, self.model.dtype
        tokens = torch.tensor(batch.tokens[:, : batch.lengths[0]], dtype=torch.long, device=device)
        inputs = {'input_ids': tokens, 'attention_mask': torch.ones_like(tokens)}
        if batch.images.shape[1]:
            images = torch.tensor(batch.images[:, 0]).permute(0, 3, 1, 2)
            inputs['pixel_values'] = images.to(device, dtype).contiguous()
        return inputs

    def timed(self, f: Callable[[], Any]) -> Run:
        """What does f once, to the end, and returns the seconds that took."""

        def run() -> float:
            self.synchronize()
            begin = time.perf_counter()
            with torch.no_grad():
                f()
            self.synchronize()
            return time.perf_counter() - begin

        return run

    def synchronize(self) -> None:
        if self.model.device.type == 'cuda':
            torch.cuda.synchronize()


class Default(Answers):
    """A cache that grows, the attention that transformers chooses, nothing compiled."""

    def vision(self, batch: int) -> Run:
        images = self.inputs(self.subject.prompt(batch, self.subject.cfg.vision.patches + 2))['pixel_values']
        return self.timed(lambda: self.model.get_image_features(pixel_values=images))

    def prefill(self, batch: int, tokens: int) -> Run:
        inputs = self.inputs(self.subject.prompt(batch, tokens, images=0))

        def first() -> Tensor:
            return self.model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)

        return self.timed(first)

    def first_token(self, batch: int, tokens: int) -> Run:
        inputs = self.inputs(self.subject.prompt(batch, tokens))
        return self.timed(lambda: self.answer(inputs, 1, tokens).cpu())


class Compiled(Answers):
    """A static cache, kept from answer to answer, and the step compiled as `generate` does on a GPU."""

    def __init__(self, subject: Subject, model: Any, backend: str = 'inductor'):
        super().__init__(subject, model)
        compiling: Any = CompileConfig(backend=backend)
        compiling._compile_all_devices = True  # on a CPU it would not compile by itself
        self.compiling = compiling
        self.shape: tuple[int, int] = 0, 0
        self.cache: Any = None

    def answer(self, inputs: dict[str, Tensor], new: int, slots: int, **settings: Any) -> Tensor:
        cache = self._cache(len(inputs['input_ids']), slots)
        settings |= {CACHE: cache, 'compile_config': self.compiling}
        return super().answer(inputs, new, slots, **settings)

    def release(self) -> None:
        """Not yet: the next line may be of the same shape."""

    def _cache(self, rows: int, slots: int) -> Any:
        """The cache of that shape, empty; a new shape forgets the old one and what was compiled for it."""
        if self.shape != (rows, slots):
            self.cache = None
            torch.compiler.reset()
            super().release()
            self.shape = rows, slots
            self.cache = StaticCache(config=self.model.config, max_cache_len=slots)
        self.cache.reset()
        return self.cache


class Clock(LogitsProcessor):
    """Reads the time when the first token's logits are there, and those of the token so many steps later."""

    def __init__(self, synchronize: Callable[[], None], steps: int):
        self.synchronize, self.steps, self.calls = synchronize, steps, 0
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.calls in (0, self.steps):
            self.synchronize()
            self.times.append(time.perf_counter())
        self.calls += 1
        return scores


def sides(subject: Subject) -> dict[str, Answers]:
    """Both ways, by name, over one copy of our weights."""
    model = copied(subject)
    return {'transformers': Default(subject, model), 'transformers, compiled': Compiled(subject, model)}


def copied(subject: Subject) -> Any:
    """transformers' model of our config and weights, on the same kind of device."""
    cfg = subject.cfg
    on_gpu = jax.default_backend() == 'gpu'
    if on_gpu and not torch.cuda.is_available():
        raise ValueError('--peer transformers: torch sees no GPU: install the one built for CUDA')
    data = to_hugging_face(dataclasses.replace(cfg, eos=(cfg.pad,)))
    dtype = getattr(torch, subject.dtype.name)
    with torch.device('cuda' if on_gpu else 'cpu'):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**data), dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = cfg.pad
    theirs = {canonical(name): tensor for name, tensor in model.state_dict().items()}
    table = {leaf.path: leaf for leaf in leaves(cfg)}
    for path, w in subject.leaves():
        leaf = table[path]
        array = rearranged(w, reverse(leaf.layout), leaf.sizes, subject.dtype)
        bits = np.asarray(array).view(f'i{subject.dtype.itemsize}')
        theirs[leaf.name].copy_(torch.from_numpy(bits.copy()).view(dtype))
    return model
