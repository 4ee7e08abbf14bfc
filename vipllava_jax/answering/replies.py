"""Turns generated tokens into the text of replies, which end at the stop strings of the template."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from vipllava_jax.answering.answer_text import DecodedText, VisibleText
from vipllava_jax.answering.beam_stream import BeamStream
from vipllava_jax.generation.decoding import TokenStream, stream
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.prefix import Prefix
from vipllava_jax.generation.result import GeneratedAnswer
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.generation.stopping import AnswerEnds
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.processor import Processor


def with_template_stops(
    settings: GenerationSettings, processor: Processor, template: str
) -> GenerationSettings:
    """The settings with the stop strings of a template."""
    stops = tuple(dict.fromkeys((*settings.stop, *processor.stop_strings(template))))
    return settings if stops == settings.stop else dataclasses.replace(settings, stop=stops)


class Reply:
    """One reply to a prompt: iterated once, it yields pieces of text as they are generated.

    The other attributes are complete after the last piece. With beams, the text is a single piece.
    """

    def __init__(
        self,
        processor: Processor,
        chunks: Iterator[np.ndarray],
        row: int,
        prompt_tokens: int,
        stream: TokenStream | BeamStream,
        settings: GenerationSettings,
    ):
        self.processor, self.chunks, self.row = processor, chunks, row
        self.prompt_tokens, self.stream, self.settings = prompt_tokens, stream, settings
        self.tokens: list[int] = []
        self.decoded = ''  # the text, including the stop string that ended it
        self.times = [time.perf_counter()]  # the time of the start, and of each chunk of tokens

    def __iter__(self) -> Iterator[str]:
        visible = VisibleText(self.settings)
        for piece in self._pieces():
            if text := visible.push(piece):
                yield text
            if visible.stopped:
                break
        if text := visible.end():
            yield text

    @property
    def ends(self) -> AnswerEnds:
        return self.stream.ends

    def _pieces(self) -> Iterator[str]:
        text = DecodedText(self.processor, self.ends.eos, self.settings.stop)
        for chunk in self.chunks:
            self.times.append(time.perf_counter())
            length = self.ends.lengths[self.row]  # beyond this chunk if another reply was read first
            ids = chunk[self.row, : length - len(self.tokens)].tolist()
            self.tokens += ids
            # Asked before the piece is yielded, because others may read further before this one goes on.
            is_last = bool(self.ends.reasons[self.row]) and len(self.tokens) == length
            piece = text.push(ids)
            self.decoded = text.text
            yield piece
            if is_last:  # other rows may continue
                break
        piece = text.end()
        self.decoded = text.text
        yield piece

    @property
    def finish_reason(self) -> str:
        """'stop' (an end id or a stop string), 'length' or 'time'."""
        return self.ends.reasons[self.row]

    @property
    def finished(self) -> bool:
        """Whether an end id or a stop string ended the reply, not a limit."""
        return self.finish_reason == 'stop'

    def generated(self) -> GeneratedAnswer:
        """The tokens of the reply, with their log-probabilities if the settings ask for them."""
        return self.stream.generation()[self.row]

    def text(self) -> str:
        """Generates the complete reply -> its text, without white space at the ends of the answer."""
        return ''.join(self).lstrip()

    def report(self) -> dict[str, Any]:
        """The numbers of tokens, whether the reply finished, and how fast it was."""
        begin, first, last = self.times[0], self.times[1], self.times[-1]
        rate = (len(self.tokens) - 1) / (last - first) if last > first else None
        return {
            'prompt_tokens': self.prompt_tokens,
            'new_tokens': len(self.tokens),
            'finished': self.finished,
            'finish_reason': self.finish_reason,
            'first_token_seconds': round(first - begin, 3),
            'tokens_per_second': rate and round(rate, 1),
        }


def replies(
    model: Model, batch: Batch, settings: GenerationSettings, prefix: Prefix | None = None
) -> list[Reply]:
    """The replies to a batch, whose rows begin with `prefix`.

    The settings are those of `with_template_stops`.
    With `num_return_sequences` n above 1, the n replies to a prompt follow one another.

    The replies can be read one after another or together: tokens are generated for the whole batch, as many
    as the reply that is read needs; with beams, all of them when the first is read. Raises the errors of
    `generate`.
    """
    processor = model.processor
    chunks: TokenStream | BeamStream
    if settings.num_beams > 1:
        chunks = BeamStream(model, batch, settings, prefix)
    else:
        shared: dict[str, Any] = {'processor': processor, 'prefix': prefix}
        chunks = stream(model.params, batch, cfg=model.cfg, settings=settings, **shared)
    lengths = np.repeat(batch.lengths, settings.num_return_sequences)
    copies = itertools.tee(chunks, len(lengths))
    return [
        Reply(processor, copy, row, int(length), chunks, settings)
        for row, (copy, length) in enumerate(zip(copies, lengths, strict=True))
    ]
