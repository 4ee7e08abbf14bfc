"""What a reply consists of: pieces while it arrives, and answers at its end."""

from dataclasses import dataclass
from typing import NamedTuple


class TokenLogprobs(NamedTuple):
    """The log-probability of a token, and the likeliest tokens in its place with theirs."""

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Piece(NamedTuple):
    """New tokens of one sample, and the text that they complete, which may be empty."""

    sample: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None  # one for each id, if the settings ask for them
    finish_reason: str = ''  # of the last piece of a sample: 'stop', 'length' or 'time'


class Answer(NamedTuple):
    """One complete answer."""

    text: str
    ids: tuple[int, ...]  # including the id that ended it
    finish_reason: str  # 'stop', 'length' or 'time'
    prompt_tokens: int
    cached_tokens: int  # how many tokens of the prompt were not computed again
    logprobs: tuple[TokenLogprobs, ...] | None = None


class NewIds(NamedTuple):
    """New ids of one sample, as the engine has written them."""

    sample: int
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    is_last: bool  # whether the sample has ended


@dataclass
class Times:
    """When a reply reached its stages, as `time.perf_counter` counts; None before."""

    submitted: float
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
