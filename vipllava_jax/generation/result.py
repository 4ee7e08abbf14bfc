"""The result of generation: the tokens of the answers, on the host."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vipllava_jax.generation.stopping import find_stop
from vipllava_jax.inputs.batch import describe_array

SHOWN = 16  # maximum number of rows in a notebook


class GeneratedAnswer(NamedTuple):
    """The answer of one row."""

    tokens: np.ndarray  # n int32, including the token that ended it
    finished: bool
    finish_reason: str  # 'stop' or 'length'


@dataclass(frozen=True, eq=False)
class Generation:
    """The answers to a batch of prompts, as numpy arrays; iterating yields one GeneratedAnswer per row."""

    tokens: np.ndarray  # BxT int32, including the token that ended the answer, followed by padding
    lengths: np.ndarray  # B, the number of tokens of each answer, including the token that ended it
    finished: np.ndarray  # B, whether an end id or a stop string ended the answer, not max_new_tokens
    finish_reasons: tuple[str, ...]  # B times 'stop' (an end id or a stop string) or 'length'
    stop: tuple[str, ...] = ()  # the stop strings, which `truncate` leaves out of a text
    keep_stop: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[GeneratedAnswer]:
        for tokens, n, reason in zip(self.tokens, self.lengths, self.finish_reasons, strict=True):
            yield GeneratedAnswer(tokens[:n], reason == 'stop', reason)

    def truncate(self, text: str) -> str:
        """The text of a row's tokens -> the answer, without a stop string and white space at both ends.

        With `keep_stop`, the answer ends with its stop string.
        """
        text = text.lstrip()
        if (found := find_stop(text, self.stop)) is None:
            return text.rstrip()
        begin, end = found
        return text[:end] if self.keep_stop else text[:begin].rstrip()

    def __repr__(self) -> str:
        arrays = f'tokens={describe_array(self.tokens)}, lengths={describe_array(self.lengths)}'
        return f'Generation({arrays}, finished={self.finished.sum()} of {len(self)})'

    def _repr_html_(self) -> str:
        rows = [
            f'<tr><td>{row}</td><td>{n}</td><td>{reason}</td></tr>'
            for row, (n, reason) in enumerate(zip(self.lengths, self.finish_reasons, strict=True))
        ]
        more = f'<p>and {len(rows) - SHOWN} more rows</p>' if len(rows) > SHOWN else ''
        head = '<tr><th>row</th><th>tokens</th><th>finish reason</th></tr>'
        return f'<p>{self!r}</p><table>{head}{"".join(rows[:SHOWN])}</table>{more}'
