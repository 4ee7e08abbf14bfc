"""The ends of answers: end ids, stop strings and the maximum number of tokens, checked on the host."""

import copy
from collections.abc import Iterable, Sequence

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.token_bytes import token_bytes


def eos_ids(settings: GenerationSettings, cfg: Config) -> tuple[int, ...]:
    """The end ids of the settings, or else those of the config."""
    return cfg.eos if settings.eos is None else tuple(np.atleast_1d(settings.eos).tolist())


def stop_ids(settings: GenerationSettings, processor: Processor | None) -> tuple[int, ...]:
    """The ids of the stop strings that are one token; ValueError for stop strings without a processor.

    A token spells a stop string with its bytes: its name may be another text, as in '<0x0A>' or '▁Yes'.
    """
    if not settings.stop:
        return ()
    if processor is None:
        raise ValueError('stop needs processor=, which turns the tokens into the text that is searched')
    tokenizer = processor.tokenizer
    named = {stop: id for stop in settings.stop if (id := tokenizer.token_to_id(stop)) is not None}
    spelled = token_bytes(tokenizer, named.values())
    return tuple(id for (stop, id), data in zip(named.items(), spelled, strict=True) if data == stop.encode())


def find_stop(text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """The start and end of the stop string that is complete first in a text; None if there is none."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    end, begin = min(found, default=(0, 0))
    return (begin, end) if found else None


class StopCut:
    """Cuts a text, which arrives in pieces, before its first stop string.

    The first is the one that is complete first, however the text is split. Text that may be the beginning of
    a stop string is held back until later pieces decide.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found = ''  # the stop string, once it is complete; what follows it is dropped
        self.held = ''

    def push(self, piece: str) -> str:
        """A piece of text -> the text that is certain to be before a stop string, as early as possible."""
        if self.found:
            return ''
        text = self.held + piece
        if found := find_stop(text, self.stops):
            self.found, self.held = text[slice(*found)], ''
            return text[: found[0]]
        certain = len(text) - _overlap(text, self.stops)
        self.held = text[certain:]
        return text[:certain]

    def end(self) -> str:
        """The text that was held back, after the last piece."""
        rest, self.held = self.held, ''
        return rest


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
        ids = [*ids]
        stream, text = copy.copy(self.stream), self.text
        # Text only grows with each id, except after bytes: a later one may turn them into other characters.
        grows = self.stream.tokenizer.byte_ids.isdisjoint([*self.stream.pending, *ids])
        if grows and not self._is_complete_after(ids):
            return None
        self.stream, self.text = stream, text
        return next((n for n, id in enumerate(ids, 1) if self._is_complete_after([id])), None)

    def _is_complete_after(self, ids: Sequence[int]) -> bool:
        """Whether the text holds a stop string after these ids, decoded as if the answer ended there."""
        self.text += self.stream.push(ids)
        last = copy.copy(self.stream)
        found = find_stop(self.text + last.end() + last.blank, self.stops)
        self.text = self.text[-self.longest :]
        return found is not None


class AnswerEnds:
    """Where the answers of a batch end, updated with the tokens of each chunk."""

    def __init__(
        self,
        limits: np.ndarray,
        eos: Sequence[int],
        pad: int,
        row_stops: Sequence[RowStops] = (),
        max_time: np.ndarray | None = None,
        stop_ids: Sequence[int] = (),
    ) -> None:
        B = len(limits)
        self.limits = limits  # B, the maximum number of tokens of each answer
        self.eos, self.pad = eos, pad  # the end ids, which texts leave out
        self.ids = {*eos, *stop_ids}  # all that end an answer
        self.row_stops = row_stops  # the detector of each row; empty without stop strings
        self.max_time = np.full(B, np.inf) if max_time is None else max_time  # B, in seconds
        self.lengths = np.zeros(B, np.int32)
        self.reasons = [''] * B  # '' until the answer has ended

    @property
    def active(self) -> np.ndarray:
        """Whether each answer has not ended, B bool."""
        return np.array([not reason for reason in self.reasons])

    @property
    def all_ended(self) -> bool:
        return all(self.reasons)

    def push(self, tokens: np.ndarray, seconds: float = 0.0) -> np.ndarray:
        """New tokens BT, `seconds` after the start -> the same, with padding after the end of each row."""
        columns = np.arange(tokens.shape[1])
        kept = [self.push_row(row, ids, seconds) for row, ids in enumerate(tokens.tolist())]
        return np.where(columns < np.array(kept)[:, None], tokens, self.pad)

    def push_row(self, row: int, ids: Sequence[int], seconds: float = 0.0) -> int:
        """New ids of one answer, `seconds` after the start -> how many of them it keeps, up to its end."""
        if self.reasons[row]:
            return 0
        n = min(len(ids), int(self.limits[row] - self.lengths[row]))
        end = next((i for i, id in enumerate(ids[:n], 1) if id in self.ids), None)
        if end is not None:
            n = end
        if self.row_stops and (found := self.row_stops[row].push(ids[:n])) is not None:
            n = end = found
        self.lengths[row] += n
        if end is not None:
            self.reasons[row] = 'stop'
        elif self.lengths[row] == self.limits[row]:
            self.reasons[row] = 'length'
        elif seconds >= self.max_time[row]:
            self.reasons[row] = 'time'
        return n
