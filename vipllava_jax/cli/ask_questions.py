"""`vipllava ask --questions`: asks many questions about the same pictures, in batches."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vipllava_jax.cli.answer_reports import report_answers, report_speed
from vipllava_jax.cli.models import compile_in_background, load_model, open_model
from vipllava_jax.cli.streaming import WAITING, stream_answers
from vipllava_jax.cli.waiting import spinner
from vipllava_jax.messages import safe_answer, safe_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from vipllava_jax.answering.replies import Reply
    from vipllava_jax.cli.question_file import ListedQuestion
    from vipllava_jax.config import Config
    from vipllava_jax.generation.model import Model
    from vipllava_jax.generation.prefix import Prefix
    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.inputs.batch import Batch
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Source
    from vipllava_jax.weight_options import WeightOptions

ROWS = 32  # the maximum number of answers that are generated together


class QuestionBatch(NamedTuple):
    """Questions that are answered together."""

    questions: 'Sequence[ListedQuestion]'
    batch: 'Batch'  # in the last batch, the last question is repeated to fill it
    settings: 'GenerationSettings'


class ListRequest(NamedTuple):
    """Questions that are ready to be answered: everything but the weights."""

    processor: 'Processor'
    prompts: 'Batch'  # of all questions
    batches: list[QuestionBatch]
    weights: 'Source'
    shapes: dict[str, Any]  # the shapes of the weights

    def answer(self, about: dict[str, Any] | None) -> None:
        """Loads the weights, and prints the answer or answers to each question after it, in order.

        They are streamed or, if there is a description of the model and the settings, printed as JSON, one
        object per question.
        """
        from vipllava_jax.answering.prefixes import shared_prefix

        _, batch, settings = self.batches[0]
        given = self.shapes, batch, self.weights.cfg, settings, self.processor
        wait = compile_in_background(*given, sharing=self.prompts)
        model, seconds = load_model(self.weights, self.processor)
        with spinner(WAITING):
            with contextlib.suppress(Exception):  # decoding raises the same error again
                wait()
            prefix = shared_prefix(model, self.prompts)
        for number, part in enumerate(self.batches):
            groups = grouped_replies(model, part, prefix)
            if about is None:
                print_answers(part, groups, is_first=number == 0)
            else:
                print_reports(part, groups, {**about, 'load_seconds': seconds})


def prepare_list(
    source: str,
    questions: 'Sequence[ListedQuestion]',
    pictures: 'list[Image]',
    template: str,
    fit: Any,
    options: 'WeightOptions',
    settings: dict[str, Any],
    mesh: Any = None,
) -> ListRequest:
    """Locates the checkpoint, and checks everything that can be checked without reading the weights.

    Raises ValueError, naming the line, for a question that leaves no room for an answer.
    """
    weights, processor = open_model(source, options, mesh)
    prompts = encode_questions(questions, pictures, processor, template, fit)
    from vipllava_jax.answering.replies import with_template_stops
    from vipllava_jax.generation.plan import make_plan
    from vipllava_jax.generation.settings import GenerationSettings

    stopping = with_template_stops(GenerationSettings(**settings), processor, template)
    limits = answer_limits(questions, prompts, weights.cfg, stopping.max_new_tokens)
    batches = [*divide(questions, prompts, limits, stopping)]
    shapes = weights.shapes()
    for part in batches:
        make_plan(shapes, part.batch, weights.cfg, part.settings, processor)
    return ListRequest(processor, prompts, batches, weights, shapes)


def encode_questions(
    questions: 'Sequence[ListedQuestion]',
    pictures: 'list[Image]',
    processor: 'Processor',
    template: str,
    fit: Any,
) -> 'Batch':
    """The prompts of all questions, with the same pictures, which are not copied; an error names the line."""
    import numpy as np

    from vipllava_jax.inputs.batch import Batch, bucket
    from vipllava_jax.inputs.padding import pad_ids
    from vipllava_jax.inputs.prompts import Turn

    first = processor('', pictures, template=template, fit=fit)
    ids = []
    for question in questions:
        with naming(question):
            ids.append(processor.encode([Turn('user', question.prompt)], len(pictures), template))
    lengths = np.array([*map(len, ids)], np.int32)
    tokens = pad_ids(ids, bucket(int(lengths.max())), processor.tokenizer.pad)
    return with_rows(Batch(tokens, lengths, first.images, first.image_counts), range(len(ids)))


def with_rows(prompts: 'Batch', rows: Sequence[int]) -> 'Batch':
    """Some rows of a batch whose rows have the same pictures, which are not copied."""
    import numpy as np

    images = np.broadcast_to(prompts.images[:1], (len(rows), *prompts.images.shape[1:]))
    counts = np.broadcast_to(prompts.image_counts[:1], len(rows))
    return type(prompts)(prompts.tokens[[*rows]], prompts.lengths[[*rows]], images, counts)


def answer_limits(
    questions: 'Sequence[ListedQuestion]', prompts: 'Batch', cfg: 'Config', given: Any
) -> list[int]:
    """The maximum number of new tokens of each answer, as if its question were the only one."""
    from vipllava_jax.generation.plan import max_new_tokens_for

    limits = []
    for row, question in enumerate(questions):
        with naming(question):
            limits += max_new_tokens_for(with_rows(prompts, [row]), cfg, given).tolist()
    return limits


@contextlib.contextmanager
def naming(question: 'ListedQuestion') -> Iterator[None]:
    """Adds the line of a question to the message of a ValueError, in place of its row in a batch."""
    from vipllava_jax.answering.prompts import single_prompt

    try:
        with single_prompt():
            yield
    except ValueError as error:
        raise ValueError(f'{question.where}: {error}') from None


def divide(
    questions: 'Sequence[ListedQuestion]',
    prompts: 'Batch',
    limits: Sequence[int],
    settings: 'GenerationSettings',
) -> Iterator[QuestionBatch]:
    """Batches of equal size, so that they run the same programs, with the settings of their rows.

    Question q draws with the seed + q, so that its answers do not depend on how many questions follow.
    """
    from vipllava_jax.generation.setting_checks import later_seed

    most = max(ROWS // max(settings.num_return_sequences, settings.num_beams), 1)
    size = math.ceil(len(questions) / math.ceil(len(questions) / most))
    for start in range(0, len(questions), size):
        rows = [min(row, len(questions) - 1) for row in range(start, start + size)]
        assert isinstance(settings.seed, int)
        seeds = [later_seed(settings.seed, row) for row in rows]
        of_rows = dataclasses.replace(settings, max_new_tokens=[limits[row] for row in rows], seed=seeds)
        yield QuestionBatch(questions[start : start + size], with_rows(prompts, rows), of_rows)


def grouped_replies(model: 'Model', part: QuestionBatch, prefix: 'Prefix | None') -> 'list[list[Reply]]':
    """The replies to each question of a batch, whose prompts begin with a prefix."""
    from vipllava_jax.answering.replies import replies

    several = replies(model, part.batch, part.settings, prefix)
    n = part.settings.num_return_sequences
    return [several[start : start + n] for start in range(0, len(part.questions) * n, n)]


def print_answers(part: QuestionBatch, groups: 'list[list[Reply]]', is_first: bool) -> None:
    """Streams the answers to each question after a line with the question, with blank lines between."""
    for number, (question, replies) in enumerate(zip(part.questions, groups, strict=True)):
        click.echo(('' if is_first and number == 0 else '\n') + f'> {safe_answer(question.text)}')
        stream_answers(replies, quiet=False)


def print_reports(part: QuestionBatch, groups: 'list[list[Reply]]', about: dict[str, Any]) -> None:
    """Prints one JSON object per question; the speed is that of the batch."""
    texts = [stream_answers(replies, quiet=True) for replies in groups]
    speed = report_speed([reply for replies in groups for reply in replies])
    for question, replies, answers in zip(part.questions, groups, texts, strict=True):
        report, numbers = report_answers(replies, answers)
        asked = {'question': question.text, 'prompt': question.prompt}
        click.echo(safe_json({**asked, **report, **about, **numbers, **speed}))
