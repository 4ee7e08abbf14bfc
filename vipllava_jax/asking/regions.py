"""Asks an engine about each region of a picture."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vipllava_jax.answering.regions import RegionAnswer, RegionQuestions
from vipllava_jax.asking.many import ask_all
from vipllava_jax.engine.pieces import Answer
from vipllava_jax.engine.question import Question
from vipllava_jax.generation.logits.processing import has_effect
from vipllava_jax.generation.result import GeneratedAnswer
from vipllava_jax.generation.setting_checks import NUMBERS
from vipllava_jax.generation.settings import GenerationSettings, rows_of
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import Turn

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine


class EngineReply:
    """An answer of an engine, with what a reply of a batch knows when it is complete."""

    def __init__(self, processor: Processor, answer: Answer) -> None:
        self.processor, self.answer = processor, answer
        self.tokens = [*answer.ids]

    @property
    def finish_reason(self) -> str:
        return self.answer.finish_reason

    def generated(self) -> GeneratedAnswer:
        """The tokens, with their log-probabilities if the settings ask for them."""
        reason, logprobs = self.finish_reason, self.answer.logprobs
        generated = GeneratedAnswer(np.array(self.tokens, np.int32), reason == 'stop', reason)
        if logprobs is None:
            return generated
        generated = generated._replace(logprobs=np.array([token.logprob for token in logprobs], np.float32))
        if not all(token.top_ids for token in logprobs):
            return generated
        return generated._replace(
            top_ids=np.array([token.top_ids for token in logprobs], np.int32),
            top_logprobs=np.array([token.top_logprobs for token in logprobs], np.float32),
        )


def ask_about_regions(
    engine: 'Engine', questions: RegionQuestions, settings: GenerationSettings, regions: Sequence[int]
) -> Iterator[list[RegionAnswer]]:
    """The answers about some regions in their order, each as soon as those before it are complete.

    Raises QuestionError for a picture that cannot be prepared, and for settings that an engine does not have.
    """
    complete: dict[int, Answer] = {}
    places = iter(regions)
    following = next(places, None)
    for ended in ask_all(engine, region_questions(questions, settings, regions)):
        for one in ended:
            if one.answer is None:
                assert one.error is not None
                raise one.error
            complete[one.key] = one.answer
        ordered = []
        while following is not None and following in complete:
            answer = complete.pop(following)
            reply = EngineReply(questions.processor, answer)
            ordered.append(RegionAnswer(following, answer.text, reply))
            following = next(places, None)
        if ordered:
            yield ordered


def region_questions(
    questions: RegionQuestions, settings: GenerationSettings, regions: Iterable[int]
) -> Iterator[tuple[int, Question]]:
    """The question about each of some regions, whose mark is drawn on a picture of its own."""
    for n in regions:
        yield (
            n,
            Question(
                [Turn('user', questions.prompts[n])],
                (questions.picture,),
                (questions.marks[n],),
                _of_region(settings, n, len(questions.marks)),
                template=questions.template,
                fit=questions.fit,
            ),
        )


def _of_region(settings: GenerationSettings, n: int, count: int) -> GenerationSettings:
    """The settings of one region, of which each number may be one per region."""
    changes: dict[str, Any] = {}
    for name in NUMBERS:
        if isinstance(value := getattr(settings, name), tuple):
            changes[name] = rows_of(name, value, count)[n].item()
    return dataclasses.replace(settings, **changes)


def are_certain(settings: GenerationSettings, count: int) -> bool:
    """Whether an engine certainly answers about `count` regions with these settings as batches do.

    That is so for greedy ones without limits of time, log-probabilities, and anything that changes logits.
    """
    counts = settings.num_beams, settings.prompt_lookup_num_tokens
    others = settings.logprobs, settings.max_time, settings.processors or None
    is_plain = counts == (1, 0) and others == (None, None, None) and not np.any(settings.temperature)
    return is_plain and not has_effect(settings, count)


def check_settings(settings: GenerationSettings, together: bool) -> None:
    """Raises ValueError if an engine would not give the answers that batches give."""
    if together:
        raise ValueError(
            'an engine asks about each region on a picture of its own: leave out the engine (--engine), or '
            'choose the mode separate (--mode separate)'
        )
    if np.any(settings.temperature):
        raise ValueError(
            'an engine draws other samples than batches: leave out the engine (--engine) or the temperature'
        )
