"""Answers the requests of the engine's benchmark with transformers: `generate` on one batch after another."""

import gc
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vipllava_jax.benchmark.engine_load import Load, Timing
from vipllava_jax.benchmark.engine_parts import LoadResult, LoadSide
from vipllava_jax.benchmark.engine_requests import TEMPLATE, Request
from vipllava_jax.benchmark.timing import recorded
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.processor import Processor

NAME = 'transformers, batches'
PARTS = ('saturation', 'one-picture', 'mixed')
ROWS = 64  # of a batch; halved while it does not fit in memory


class Batches:
    """transformers' model with a batch size that fits in memory."""

    def __init__(self, model: Any, processor: Processor, rows: int = ROWS):
        self.model, self.processor, self.rows = model, processor, rows

    def send(self, requests: Sequence[Request]) -> Load:
        """Answers the requests in their order; a batch goes on until its longest answer is complete."""
        timings: list[Timing] = []
        begin = time.perf_counter()
        while len(timings) < len(requests):
            batch = requests[len(timings) : len(timings) + self.rows]
            try:
                texts = self.answer(batch)
            except torch.cuda.OutOfMemoryError:
                if self.rows == 1:
                    raise
                self.rows //= 2
                release()
                continue
            end = time.perf_counter() - begin
            timings += [Timing(None, end, request.new) for request, _ in zip(batch, texts, strict=True)]
        return Load(time.perf_counter() - begin, tuple(timings))

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """Requests -> the texts of their answers, from the host to the host."""
        prompts = [request.prompt for request in requests]
        batch = self.processor(prompts, [request.picture for request in requests], template=TEMPLATE)
        inputs = self.inputs(batch)
        new = max(request.new for request in requests)
        with torch.no_grad():
            out = self.model.generate(**inputs, max_new_tokens=new, do_sample=False).cpu().numpy()
        answers = out[:, inputs['input_ids'].shape[1] :]
        return [
            self.processor.decode(ids[: request.new]) for ids, request in zip(answers, requests, strict=True)
        ]

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """A batch on the model's device, padded at the left as `generate` expects."""
        device, dtype, longest = self.model.device, self.model.dtype, int(batch.lengths.max())
        ids = np.full((len(batch.tokens), longest), self.processor.tokenizer.pad)
        for row, tokens, length in zip(ids, batch.tokens, batch.lengths, strict=True):
            row[longest - length :] = tokens[:length]
        mask = np.arange(longest) >= longest - batch.lengths[:, None]
        return {
            'input_ids': torch.tensor(ids, dtype=torch.long, device=device),
            'attention_mask': torch.tensor(mask, dtype=torch.long, device=device),
            'pixel_values': torch.tensor(batch.images[:, 0], device=device).permute(0, 3, 1, 2).to(dtype),
        }


def measure(results: Sequence[LoadResult], model: Any, processor: Processor) -> Iterator[LoadResult]:
    """Measures the parts that suit batches with transformers' model; mixed lengths take long and run once."""
    batches = Batches(model, processor)
    for result in results:
        if result.part in PARTS:
            side = result.sides[NAME] = LoadSide()
            with recorded(side):
                begin = time.perf_counter()
                batches.send(result.requests(0))
                side.warm_up = time.perf_counter() - begin
                for repeat in range(1, 1 + (1 if result.part == 'mixed' else result.repeats)):
                    side.add(batches.send(result.requests(repeat)))
            release()
            yield result


def release() -> None:
    """Returns unused memory to the device."""
    gc.collect()
    torch.cuda.empty_cache()
