"""Checks the tokens of an answer against the grammar of its format, by llguidance."""

import re
import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.engine.answer_format import AnswerFormat, grammar_of
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.inputs.token_bytes import token_bytes
from vipllava_jax.inputs.tokenizer import Tokenizer
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

PART = 'answer_format'  # of a question, which is at fault
NO_TEXT = b'\xff<%d>'  # llguidance's notation of a token that no grammar allows
# What formats may cost; the time of a token's mask is bounded by the fuel and the items of a step.
LIMITS: dict[str, Any] = {
    'initial_lexer_fuel': 500_000,
    'step_lexer_fuel': 30_000,
    'step_max_items': 20_000,
    'max_lexer_states': 10_000,
    'max_grammar_size': 100_000,
    'verbose_errors': False,
}


class Matcher:
    """The state of one answer's grammar after the tokens that it has accepted."""

    def __init__(self, matcher: 'LLMatcher', texts: np.ndarray, eos: Collection[int]) -> None:
        """`texts` W uint32 has a bit for each id that stands for text; `eos` are the ids that end answers."""
        self._matcher, self._eos = matcher, eos
        self._ends = id_bits(eos, len(texts))
        self._texts = texts & ~self._ends

    def accept(self, id: int) -> bool:
        """Whether the grammar allows an id next, which is then a part of the answer.

        An id that ends answers is allowed where the text so far is a whole answer.
        """
        if id in self._eos:
            return self._matcher.is_accepting()
        return self._matcher.try_consume_tokens([id]) == 1

    def allowed(self) -> np.ndarray:
        """The ids that are allowed next, W uint32, a bit for each.

        Raises QuestionError if there are none, or if it is too much work to find them.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(self._texts)] & self._texts
        if self._matcher.is_error():
            raise QuestionError(f'the format of the answer is too complex: {reason(self._matcher)}', PART)
        if self._matcher.is_accepting():
            mask = mask | self._ends
        if not mask.any():
            raise QuestionError('no token of the vocabulary continues the answer in its format', PART)
        return mask

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return self._matcher.is_stopped()


class Vocabulary:
    """What the ids of a model spell, for matchers; thread-safe. It is built for the first format."""

    def __init__(self, tokenizer: Tokenizer, cfg: Config) -> None:
        self._tokenizer, self._size = tokenizer, cfg.text.vocab
        added = tokenizer.backend.get_added_tokens_decoder()
        self._no_text = {*added, *tokenizer.special_ids, cfg.image_token, cfg.pad}
        self._lock = threading.Lock()
        self._built: tuple[LLTokenizer, np.ndarray, np.ndarray] | None = None

    def matchers(
        self, answer_format: AnswerFormat | None, count: int, eos: Collection[int]
    ) -> tuple[Matcher, ...]:
        """A matcher for each of `count` answers, or none without a format.

        Each is compiled for its answer alone: copies would share the states that the lexer has found, and
        their number is limited, so that one answer could use up those of another. Raises QuestionError for a
        format that is invalid, too complex, or that no answer can have.
        """
        if answer_format is None:
            return ()
        try:
            grammar = grammar_of(answer_format)
        except (ValueError, TypeError) as error:
            raise QuestionError(str(error), PART) from None
        return tuple(self._compile(grammar, eos) for _ in range(count))

    def _compile(self, grammar: str, eos: Collection[int]) -> Matcher:
        tokenizer, texts, spaces = self._vocabulary()
        from llguidance import LLMatcher, LLParserLimits

        found = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if found.is_error():
            raise QuestionError(f'the format of the answer cannot be used: {reason(found)}', PART)
        matcher = Matcher(found, texts, eos)
        if not (matcher.allowed() & ~spaces).any():
            raise QuestionError(
                'no answer can have this format: answers neither begin nor end with white space', PART
            )
        return matcher

    def _vocabulary(self) -> 'tuple[LLTokenizer, np.ndarray, np.ndarray]':
        """The tokenizer for llguidance, and the ids of texts and of single spaces, W uint32 each."""
        with self._lock:
            if self._built is None:
                self._built = self._build()
            return self._built

    def _build(self) -> 'tuple[LLTokenizer, np.ndarray, np.ndarray]':
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise QuestionError(
                "the format of an answer needs llguidance: pip install 'vipllava-jax[serve]'", PART
            ) from None
        spelled = token_bytes(self._tokenizer, range(self._size))
        texts = {id for id, data in enumerate(spelled) if data and id not in self._no_text}
        tokens = [data if id in texts else NO_TEXT % id for id, data in enumerate(spelled)]
        W = -(-self._size // 32)
        spaces = id_bits((id for id in texts if spelled[id] == b' '), W)
        # Each question has its own ids that end answers, so llguidance is given one that no model has.
        end = self._size
        wrapped = TokenizerWrapper(_Tokens([*tokens, NO_TEXT % end], end))
        return LLTokenizer(wrapped, n_vocab=end + 1, eos_token=end), id_bits(texts, W), spaces


class _Tokens:
    """Tokens as llguidance takes them."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], eos: int) -> None:
        self.tokens, self.eos_token_id = tokens, eos

    def __call__(self, text: bytes) -> list[int]:
        """Encodes text that a grammar forces: none, because grammars have `no_forcing`."""
        return []


def id_bits(ids: Iterable[int], W: int) -> np.ndarray:
    """A set of ids as W uint32 with a bit for each."""
    bits = np.zeros(32 * W, bool)
    bits[[*ids]] = True
    return np.packbits(bits, bitorder='little').view(np.uint32)


def reason(matcher: 'LLMatcher') -> str:
    """Why llguidance has failed, without the position in the grammar and the lines around it."""
    text = re.sub(r'^(at )?\d+\(\d+\): ', '', matcher.get_error())
    text = re.split(r'\n *\d+ \| |<non-verbose/>', text)[0]
    return printable(text.rpartition('\nerror: ')[2], 300)
