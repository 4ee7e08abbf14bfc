"""Measures transformers on the same weights: by default, and with a static cache and torch.compile.

Every weight is copied through the host, rearrange according to the converter's table, so that both sides
hold the same values, each in its layout.
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

from vipllava_jax.benchmark.measure import STEPS
from vipllava_jax.benchmark.subject import Subject
from vipllava_jax.benchmark.timing import Run
from vipllava_jax.convert.shards import rearrange
from vipllava_jax.convert.table import hub_name, leaves, reverse_layout
from vipllava_jax.hugging_face import to_hugging_face
from vipllava_jax.inputs.batch import Batch, bucket

CACHE = (
    'cache' if parse(transformers.__version__) >= parse('5.24') else 'past_key_values'
)  # the argument of `generate`


class Answers:
    """The common part of both configurations: answers of a fixed length, by `generate`."""

    def __init__(self, subject: Subject, model: Any):
        self.subject, self.model = subject, model

    def generate(self, batch: int, tokens: int) -> Run:
        """Times prompts on the host -> answers of STEPS tokens on the host, like `Ours.generate`."""
        prompt = self.subject.prompt(batch, tokens)
        slots = bucket(tokens + 2 * STEPS)  # the same cache size as in the decode line of this context
        return self.timed(lambda: self.answer(self.inputs(prompt), STEPS, slots).cpu())

    def decode(self, batch: int, context: int) -> Run:
        """Times decoding STEPS tokens after a prompt of `context` tokens; returns the seconds per token."""
        inputs = self.inputs(self.subject.prompt(batch, context))

        def run() -> float:
            clock = Clock(self.synchronize, STEPS)
            self.answer(inputs, STEPS + 1, bucket(context + STEPS), logits_processor=[clock])
            return (clock.times[-1] - clock.times[0]) / STEPS

        return run

    def release(self) -> None:
        """Returns unused memory to the device, because the other side may need it."""
        gc.collect()
        torch.cuda.empty_cache()

    def discard(self) -> None:
        """Frees the weights, after the last line that needs them."""
        self.model = None
        Answers.release(self)

    def answer(self, inputs: dict[str, Tensor], new: int, slots: int, **settings: Any) -> Tensor:
        """Prompts -> the prompts followed by `new` tokens per row; a static cache has `slots` slots."""
        with torch.no_grad():
            out = self.model.generate(**inputs, **settings, max_new_tokens=new, do_sample=False)
        assert out.shape[1] == inputs['input_ids'].shape[1] + new
        return out

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The rows of a batch on the model's device, without the padding of the batch."""
        device, dtype = self.model.device, self.model.dtype
        tokens = torch.tensor(batch.tokens[:, : batch.lengths[0]], dtype=torch.long, device=device)
        inputs = {'input_ids': tokens, 'attention_mask': torch.ones_like(tokens)}
        if batch.images.shape[1]:
            images = torch.tensor(batch.images[:, 0]).permute(0, 3, 1, 2)
            inputs['pixel_values'] = images.to(device, dtype).contiguous()
        return inputs

    def timed(self, f: Callable[[], Any]) -> Run:
        """Returns a function that calls f, waits for the device, and returns the seconds taken."""

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
    """transformers by default: a growing cache, its default attention, nothing compiled."""

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
    """A static cache, reused between answers, and the decoding step compiled as `generate` does on a GPU."""

    def __init__(self, subject: Subject, model: Any, backend: str = 'inductor'):
        super().__init__(subject, model)
        compiling: Any = CompileConfig(backend=backend)
        compiling._compile_all_devices = True  # by default it compiles only on accelerators
        self.compiling = compiling
        self.shape: tuple[int, int] = 0, 0
        self.cache: Any = None

    def answer(self, inputs: dict[str, Tensor], new: int, slots: int, **settings: Any) -> Tensor:
        cache = self._cache(len(inputs['input_ids']), slots)
        settings |= {CACHE: cache, 'compile_config': self.compiling}
        return super().answer(inputs, new, slots, **settings)

    def release(self) -> None:
        """Keeps the memory: the next line may have the same shape."""

    def discard(self) -> None:
        self.cache, self.shape = None, (0, 0)
        torch.compiler.reset()
        super().discard()

    def _cache(self, rows: int, slots: int) -> Any:
        """An empty cache of a shape; a new shape discards the old cache and the programs compiled for it."""
        if self.shape != (rows, slots):
            self.cache = None
            torch.compiler.reset()
            super().release()
            self.shape = rows, slots
            self.cache = StaticCache(config=self.model.config, max_cache_len=slots)
        self.cache.reset()
        return self.cache


class Clock(LogitsProcessor):
    """Records the time when the first token's logits are computed, and again `steps` tokens later."""

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
    """Both configurations, by name, sharing one copy of the weights."""
    model = copied(subject)
    return {'transformers': Default(subject, model), 'transformers, compiled': Compiled(subject, model)}


def copied(subject: Subject) -> Any:
    """transformers' model with this config and these weights, on the same type of device."""
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
    theirs = {hub_name(name): tensor for name, tensor in model.state_dict().items()}
    table = {leaf.path: leaf for leaf in leaves(cfg)}
    for path, w in subject.leaves():
        leaf = table[path]
        array = rearrange(w, reverse_layout(leaf.layout), leaf.sizes, subject.dtype)
        bits = np.asarray(array).view(f'i{subject.dtype.itemsize}')
        theirs[leaf.name].copy_(torch.from_numpy(bits.copy()).view(dtype))
    return model
