"""Turns generated ids into the text of replies, which ends at the stop strings of the template."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vipllava_jax.generation.decoding import stream
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.stopping import ends, until
from vipllava_jax.inputs.processor import Batch, Processor


class Reply:
    """The reply to one prompt: iterated once, it yields pieces of text as they are generated.

    The other attributes are complete after the last piece.
    """

    def __init__(
        self,
        processor: Processor,
        chunks: Iterator[np.ndarray],
        row: int,
        prompt_tokens: int,
        stops: Sequence[str],
        eos: Sequence[int],
    ):
        self.processor, self.chunks, self.row = processor, chunks, row
        self.prompt_tokens, self.stops, self.eos = prompt_tokens, stops, eos
        self.tokens: list[int] = []
        self.finished = True  # False if the tokens ended before the reply did
        self.times = [time.perf_counter()]  # of the start, and of each chunk of tokens

    def __iter__(self) -> Iterator[str]:
        return until(self._pieces(), self.stops)

    def _pieces(self) -> Iterator[str]:
        text = self.processor.text_stream()
        end = None
        for chunk in self.chunks:
            self.times.append(time.perf_counter())
            ids = chunk[self.row].tolist()
            end = next((n for n, id in enumerate(ids) if id in self.eos), None)
            self.tokens += ids if end is None else ids[: end + 1]
            yield text.push(ids[:end])
            if end is not None:  # other rows of the batch may continue
                break
        yield text.end()
        self.finished = end is not None  # not reached if a stop string ended the reply

    def text(self) -> str:
        """Generates the whole reply -> its text, without white space at the ends."""
        return ''.join(self).strip()

    def report(self) -> dict[str, Any]:
        """The numbers of tokens, whether the reply finished, and how fast it was."""
        begin, first, last = self.times[0], self.times[1], self.times[-1]
        rate = (len(self.tokens) - 1) / (last - first) if last > first else None
        return {
            'prompt_tokens': self.prompt_tokens,
            'new_tokens': len(self.tokens),
            'finished': self.finished,
            'first_token_seconds': round(first - begin, 3),
            'tokens_per_second': rate and round(rate, 1),
        }


def replies(model: Model, batch: Batch, template: str, settings: Mapping[str, Any]) -> list[Reply]:
    """The reply to each row of a batch; `settings` are the arguments of `stream`, without `eos`.

    The replies can be read one after another or together: tokens are generated for the whole batch, as many
    as the reply that is read needs. Raises the errors of `stream`.
    """
    stops, eos = ends(model.processor, template, model.cfg)
    chunks = stream(model.params, batch, cfg=model.cfg, **settings, eos=eos)
    return [
        Reply(model.processor, copy, row, int(batch.lengths[row]), stops, eos)
        for row, copy in enumerate(itertools.tee(chunks, len(batch.tokens)))
    ]
