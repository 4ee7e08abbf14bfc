"""Questions that are ready for the device: their ids, pictures and settings."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vipllava_jax.engine.device import Selection
from vipllava_jax.engine.matching import Matcher
from vipllava_jax.engine.prefix_store import prefix_key
from vipllava_jax.engine.reply import Reply
from vipllava_jax.engine.row_settings import RowSettings, settings_of_row
from vipllava_jax.engine.shapes import Shapes
from vipllava_jax.generation.logits.processing import has_effect


@dataclass(eq=False)
class Waiting:
    """A question with its pictures, or an answer that goes on after its row was needed."""

    reply: Reply
    ids: np.ndarray  # T int32, the prompt and, if an answer goes on, what it has
    samples: tuple[int, ...]  # the numbers of the answers that are to be generated
    selection: Selection
    settings: tuple[RowSettings, ...]  # of each answer, B = 1; none if all are greedy
    pictures: np.ndarray  # Ihw3 uint8
    matchers: Sequence[Matcher] = ()  # of each answer, if they have a format
    priority: float = 0  # lower ones are answered earlier
    key: bytes | None = None  # of the beginning of the prompt up to its last picture
    prefix: int = 0  # the number of tokens of this beginning

    @property
    def left(self) -> int:
        """The number of tokens that each of its answers may still have."""
        question = self.reply.question
        return question.limit - (len(self.ids) - len(question.ids))


def waiting_for(reply: Reply, shapes: Shapes, matchers: Sequence[Matcher] = ()) -> Waiting:
    """A question without its pictures; raises QuestionError for too long lists in its settings."""
    question = reply.question
    samples = tuple(range(question.settings.num_return_sequences))
    selection = selection_of(reply)
    settings = _settings(reply, question.ids, samples, selection, shapes)
    no_pictures, priority = np.zeros((0, 0, 0, 3), np.uint8), question.question.priority
    return Waiting(reply, question.ids, samples, selection, settings, no_pictures, matchers, priority)


def with_pictures(
    waiting: Waiting, pictures: np.ndarray, digests: tuple[bytes, ...], image_token: int
) -> Waiting:
    """A question with its pictures Ihw3 uint8, of whose pixels these are the digests."""
    key, prefix = prefix_key(waiting.ids, image_token, digests) or (None, 0)
    return dataclasses.replace(waiting, pictures=pictures, key=key, prefix=prefix)


def going_on(
    waiting: Waiting, sample: int, ids: list[int], matchers: Sequence[Matcher], shapes: Shapes
) -> Waiting:
    """One of the answers of a question after these new ids, which are computed again with the prompt.

    It comes before all other questions. `matchers` has that of its format, if it has one.
    """
    whole = np.concatenate([waiting.ids, np.array(ids, np.int32)])
    settings = _settings(waiting.reply, whole, (sample,), waiting.selection, shapes)
    return dataclasses.replace(
        waiting,
        ids=whole,
        samples=(sample,),
        settings=settings,
        matchers=matchers,
        priority=-math.inf,
        key=None,
        prefix=0,
    )


def selection_of(reply: Reply) -> Selection:
    """How the tokens of a reply are selected."""
    settings = reply.question.settings
    if settings.logprobs is not None or has_effect(settings, 1):
        return Selection.PROCESSED
    return Selection.SAMPLED if np.any(settings.temperature) else Selection.GREEDY


def _settings(
    reply: Reply, ids: np.ndarray, samples: tuple[int, ...], selection: Selection, shapes: Shapes
) -> tuple[RowSettings, ...]:
    if selection is Selection.GREEDY:
        return ()
    question = reply.question
    prompt = len(question.ids)
    return tuple(
        settings_of_row(question.settings, n, ids, prompt, question.limit, question.eos, shapes.context)
        for n in samples
    )
