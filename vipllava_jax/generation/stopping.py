"""The ends of answers: end ids, stop strings and the maximum number of tokens, checked on the host."""

import copy
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.processor import Processor


def stop_ids(processor: Processor, stops: Sequence[str]) -> list[int]:
    """The ids of the stop strings that are one token."""
    ids = [processor.tokenizer.token_to_id(stop) for stop in stops]
    return [id for id in ids if id is not None]


def eos_ids(settings: GenerationSettings, cfg: Config) -> tuple[int, ...]:
    """The end ids of the settings, or else those of the config."""
    return cfg.eos if settings.eos is None else tuple(np.atleast_1d(settings.eos).tolist())


def end_ids(settings: GenerationSettings, cfg: Config, processor: Processor | None) -> tuple[int, ...]:
    """The ids that end an answer: the end ids, and stop strings of one token.

    Raises ValueError if there are stop strings and no processor.
    """
    eos = eos_ids(settings, cfg)
    if not settings.stop:
        return eos
    if processor is None:
        raise ValueError('stop needs processor=, which turns the tokens into the text that is searched')
    return (*eos, *stop_ids(processor, settings.stop))


def find_stop(text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """The start and end of the stop string that is complete first in a text; None if there is none."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    end, begin = min(found, default=(0, 0))
    return (begin, end) if found else None


def truncate_at_stops(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pieces of text -> pieces of the same text up to the first stop string, as early as possible.

    The first is the one that is complete first, however the text is split. Text that may be the beginning of
    a stop string is held back until later pieces decide.
    """
    buffer = ''
    for piece in pieces:
        buffer += piece
        if found := find_stop(buffer, stops):
            yield buffer[: found[0]]
            return
        certain = len(buffer) - _overlap(buffer, stops)
        if certain:
            yield buffer[:certain]
            buffer = buffer[certain:]
    if buffer:
        yield buffer


def _overlap(text: str, stops: Sequence[str]) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


class RowStops:
    """Finds the first stop string in the text of one row as its tokens arrive."""

    def __init__(self, processor: Processor, stops: Sequence[str]) -> None:
        self.stream, self.stops = processor.text_stream(), stops
        self.longest = max(map(len, stops))
        self.text = ''  # the last characters of the text, as many as the longest stop string has

    def __copy__(self) -> 'RowStops':
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, stream=copy.copy(self.stream))
        return other

    def push(self, ids: Iterable[int]) -> int | None:
        """The number of these ids up to and including the one that completes a stop string, or None."""
        for n, id in enumerate(ids, 1):
            self.text += self.stream.push([id])
            last = copy.copy(self.stream)  # decodes the pending ids as if the answer ended here
            if find_stop(self.text + last.end() + last.blank, self.stops):
                return n
            self.text = self.text[-self.longest :]
        return None


class AnswerEnds:
    """Where the answers of a batch end, updated with the tokens of each chunk."""

    def __init__(
        self,
        limits: np.ndarray,
        eos: Sequence[int],
        pad: int,
        row_stops: Sequence[RowStops] = (),
        max_time: np.ndarray | None = None,
    ) -> None:
        B = len(limits)
        self.limits = limits  # B, the maximum number of tokens of each answer
        self.eos, self.pad = eos, pad
        self.row_stops = row_stops  # the detector of each row; empty without stop strings
        self.max_time = np.full(B, np.inf) if max_time is None else max_time  # B, in seconds
        self.lengths = np.zeros(B, np.int32)
        self.reasons = [''] * B  # '' until the answer has ended

    @property
    def all_ended(self) -> bool:
        return all(self.reasons)

    def push(self, tokens: np.ndarray, seconds: float = 0.0) -> np.ndarray:
        """New tokens BT, `seconds` after the start -> the same, with padding after the end of each row."""
        tokens = tokens.copy()
        for row, ids in enumerate(tokens):
            if self.reasons[row]:
                ids[:] = self.pad
                continue
            ids = ids[: self.limits[row] - self.lengths[row]]
            n, reason = len(ids), 'time' if seconds >= self.max_time[row] else ''
            if n + self.lengths[row] == self.limits[row]:
                reason = 'length'
            if (end := self._stop(row, ids)) is not None:
                n, reason = end, 'stop'
            self.lengths[row] += n
            self.reasons[row] = reason
            tokens[row, n:] = self.pad
        return tokens

    def _stop(self, row: int, ids: np.ndarray) -> int | None:
        """The number of these ids up to and including the one that ends the answer, or None."""
        is_end = np.isin(ids, self.eos)
        end = int(is_end.argmax()) + 1 if is_end.any() else None
        found = self.row_stops[row].push(ids[:end]) if self.row_stops else None
        return end if found is None else found
