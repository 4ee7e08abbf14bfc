"""Random requests for the engine, by seed: a picture each, with prompts and answers of exact lengths."""

from typing import NamedTuple

import numpy as np

from vipllava_jax.benchmark.engine_words import words
from vipllava_jax.config import Config

TEMPLATE = 'plain'  # adds no text and has no stop strings
TEXT = 64  # tokens of a prompt besides the picture
QUESTION = 28  # the same for many questions about one picture
NEW = 64  # tokens per answer
MIXED_TEXT = 24, 924  # the shortest and longest text of mixed lengths: prompts of 600 to 1,500 tokens
MIXED_NEW = 1, 256


class Request(NamedTuple):
    """A prompt about a picture hw3 uint8, and the lengths of prompt and answer in tokens."""

    prompt: str
    picture: np.ndarray
    tokens: int
    new: int


class Requests:
    """Random requests for a model; different seeds share no picture and no prompt."""

    def __init__(self, cfg: Config):
        self.cfg, self.words = cfg, words(cfg)

    def new_pictures(self, n: int, seed: int) -> list[Request]:
        """n requests with a picture each, of one length."""
        rng = np.random.default_rng([1, seed])
        return [self._request(rng, self._picture(rng), TEXT, NEW) for _ in range(n)]

    def one_picture(self, n: int, seed: int) -> list[Request]:
        """n short questions about one picture."""
        rng = np.random.default_rng([2, seed])
        picture = self._picture(rng)
        return [self._request(rng, picture, QUESTION, NEW) for _ in range(n)]

    def mixed_lengths(self, n: int, seed: int) -> list[Request]:
        """n requests with a picture each; the lengths of text and answer are uniformly distributed."""
        rng = np.random.default_rng([3, seed])
        (shortest, longest), (least, most) = MIXED_TEXT, MIXED_NEW
        sizes = zip(
            rng.integers(shortest, longest + 1, n).tolist(),
            rng.integers(least, most + 1, n).tolist(),
            strict=True,
        )
        return [self._request(rng, self._picture(rng), text, new) for text, new in sizes]

    def _request(self, rng: np.random.Generator, picture: np.ndarray, text: int, new: int) -> Request:
        prompt = ' '.join(rng.choice(self.words, text - 1))  # one token begins the sequence
        return Request(prompt, picture, self.cfg.vision.patches + text, new)

    def _picture(self, rng: np.random.Generator) -> np.ndarray:
        side = self.cfg.vision.image_size
        return rng.integers(0, 256, (side, side, 3), np.uint8)


def poisson_arrivals(n: int, rate: float, seed: int) -> list[float]:
    """The times of n arrivals in seconds, `rate` per second on average, with independent gaps."""
    return np.cumsum(np.random.default_rng([4, seed]).exponential(1 / rate, n)).tolist()
