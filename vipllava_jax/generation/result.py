"""The result of generation: the answers on the host, with the log-probabilities of their tokens."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, overload

import numpy as np

from vipllava_jax.generation.logits.next_token import NewTokens
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.generation.stopping import AnswerEnds, find_stop
from vipllava_jax.inputs.batch import describe_array
from vipllava_jax.messages import brief

SHOWN = 16  # the maximum number of answers that a notebook shows
REPORTED = ('logprobs', 'scores', 'top_ids', 'top_logprobs')
OF_ANSWERS = ('tokens', 'lengths', 'finished', 'finish_reasons', *REPORTED, 'sequence_scores')


class GeneratedAnswer(NamedTuple):
    """One answer of n tokens, without padding."""

    tokens: np.ndarray  # n int32, including the token that ended it
    finished: bool
    finish_reason: str  # 'stop', 'length' or 'time'
    logprobs: np.ndarray | None = None  # n float32
    top_ids: np.ndarray | None = None  # nxk int32
    top_logprobs: np.ndarray | None = None  # nxk float32
    scores: np.ndarray | None = None  # n float32
    sequence_score: float | None = None


@dataclass(frozen=True, eq=False)
class Generation:
    """The A answers to a batch of prompts, as numpy arrays.

    `out[a]` is answer a as a GeneratedAnswer, iterating yields all of them, and a slice is a Generation. With
    n answers per prompt, A is B·n and the answers to a prompt follow one another. Log-probabilities are
    natural logarithms of the model's probabilities, before processors and temperature. `scores` are what the
    tokens were selected by, after processors and filters, as in transformers. After the end of an answer,
    tokens are padding and all numbers 0.
    """

    tokens: np.ndarray  # AxT int32, including the token that ended the answer, followed by padding
    lengths: np.ndarray  # A, the number of tokens of each answer, including the token that ended it
    finished: np.ndarray  # A, whether an end id or a stop string ended the answer
    finish_reasons: tuple[str, ...]  # A times 'stop' (an end id or a stop string), 'length' or 'time'; or ''
    stop: tuple[str, ...] = ()  # the stop strings, which `truncate` leaves out of a text
    keep_stop: bool = False
    eos: tuple[int, ...] = ()  # the end ids, which a text leaves out
    logprobs: np.ndarray | None = None  # AxT float32, with the setting `logprobs`
    top_ids: np.ndarray | None = None  # AxTxk int32, the most likely tokens, with `logprobs` above 0
    top_logprobs: np.ndarray | None = None  # AxTxk float32
    scores: np.ndarray | None = None  # AxT float32, with `logprobs`
    sequence_scores: np.ndarray | None = None  # A float32, by which beams are ranked; None without beams

    @classmethod
    def of(cls, pieces: Sequence[NewTokens], ends: AnswerEnds, settings: GenerationSettings) -> Self:
        """The answers whose tokens arrived in pieces."""
        T = ends.lengths.max()

        def joined(name: str) -> np.ndarray | None:
            parts = [getattr(piece, name) for piece in pieces]
            return None if parts[0] is None else np.concatenate(parts, axis=1)[:, :T]

        reports = {name: joined(name) for name in REPORTED}
        for name, x in reports.items():
            if x is not None:
                ended = np.arange(T) >= ends.lengths[:, None]
                x = x[..., : settings.logprobs] if x.ndim == 3 else x
                reports[name] = np.where(ended.reshape(*ended.shape, *[1] * (x.ndim - 2)), 0, x)
        return cls(
            tokens=np.concatenate([piece.tokens for piece in pieces], axis=1)[:, :T],
            lengths=ends.lengths.copy(),
            finished=np.array([reason == 'stop' for reason in ends.reasons]),
            finish_reasons=tuple(ends.reasons),
            stop=tuple(settings.stop),
            keep_stop=settings.keep_stop,
            eos=tuple(ends.eos),
            **reports,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[GeneratedAnswer]:
        return (self[answer] for answer in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> GeneratedAnswer: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> 'GeneratedAnswer | Self':
        fields = {name: x for name in OF_ANSWERS if (x := getattr(self, name)) is not None}
        if isinstance(index, slice):
            return dataclasses.replace(self, **{name: x[index] for name, x in fields.items()})
        if not hasattr(index, '__index__') or np.ndim(index):
            raise TypeError(f'an index is {brief(index)}, but must be a whole number or a slice')
        if not -len(self) <= index < len(self):
            raise IndexError(f'there is no answer {index}: there are {len(self)}')
        n, reason = self.lengths[index], self.finish_reasons[index]
        reports = {name: fields[name][index, :n] for name in REPORTED if name in fields}
        score = None if self.sequence_scores is None else float(self.sequence_scores[index])
        return GeneratedAnswer(
            self.tokens[index, :n], reason == 'stop', reason, **reports, sequence_score=score
        )

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
        names = ('tokens', 'lengths', *REPORTED, 'sequence_scores')
        arrays = ', '.join(
            f'{name}={describe_array(x)}' for name in names if (x := getattr(self, name)) is not None
        )
        return f'Generation({arrays}, finished={self.finished.sum()} of {len(self)})'

    def _repr_html_(self) -> str:
        """A table for a notebook: the arrays, and the numbers of the first answers."""
        columns: dict[str, Any] = {'answer': range(len(self)), 'tokens': self.lengths}
        columns['finish reason'] = self.finish_reasons
        if self.logprobs is not None:
            means = self.logprobs.sum(axis=1) / np.maximum(self.lengths, 1)
            columns['mean log-probability'] = [f'{mean:.3f}' for mean in means]
        if self.sequence_scores is not None:
            columns['score'] = [f'{score:.3f}' for score in self.sequence_scores]
        rows = [*zip(*columns.values(), strict=True)]
        cells = [''.join(f'<td>{text}</td>' for text in row) for row in rows[:SHOWN]]
        head = ''.join(f'<th>{name}</th>' for name in columns)
        table = ''.join(f'<tr>{row}</tr>' for row in (head, *cells))
        more = f'<p>and {len(rows) - SHOWN} more answers</p>' if len(rows) > SHOWN else ''
        return f'<p>{self!r}</p><table>{table}</table>{more}'
