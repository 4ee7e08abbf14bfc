"""Chooses among given answers by their likelihood."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vipllava_jax.answering.prefixes import common_prefix
from vipllava_jax.answering.prompts import Marks, image_list, insert_phrases, mark_images, single_prompt
from vipllava_jax.answering.questions import check_model, check_question
from vipllava_jax.data.conversations import ANSWER_ENDINGS, answer_spans
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.scoring import score_answers
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, IMAGE_TOKEN, Turn, render
from vipllava_jax.messages import brief


class Choice(NamedTuple):
    """The likeliest of some options."""

    best: int  # its index, the first of equal ones
    scores: tuple[float, ...]  # the log-probability of each option


class EncodedOptions(NamedTuple):
    """The ids of options, which follow all but the last `dropped` ids of their prompt."""

    dropped: int  # 0, unless the tokenizer joins the end of the prompt and the start of an option
    ids: list[list[int]]


def choose(
    model: Model,
    question: str,
    options: Sequence[str],
    image: ImageSource | Sequence[ImageSource] | None = None,
    *,
    marks: Marks = (),
    mean: bool = False,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
) -> Choice:
    """The likeliest answer to a question among `options`, and the log-probability of each.

    A score is the sum of the log-probabilities of an option's tokens, the end token included; with `mean`,
    their mean, which does not prefer short options. The question is that of `answer`, with its marks; {mark}
    is also replaced in the options, and white space at their ends is removed. The prompt is computed once for
    all options.

    Raises ValueError, TypeError or FileNotFoundError before anything long runs.
    """
    check_model(model)
    check_question(question)
    texts = check_options(options)
    images, drawn = mark_images(image_list(image), marks)
    prompt = insert_phrases(question, drawn)
    texts = [insert_phrases(text, drawn, f'options[{n}]') for n, text in enumerate(texts)]
    processor = model.processor
    with single_prompt():
        batch = processor(prompt, images, template=template, fit=fit)
        encoded = encode_options(processor, [Turn('user', prompt)], len(images), texts, template)
        batch = batch._replace(lengths=batch.lengths - encoded.dropped)
        (scores,) = score_answers(model.params, batch, [encoded.ids], cfg=model.cfg)
    if mean:
        scores /= [len(ids) for ids in encoded.ids]
    return Choice(int(scores.argmax()), tuple(scores.tolist()))


def check_options(options: Iterable[str]) -> list[str]:
    """The options without white space at their ends; TypeError or ValueError names one that is invalid."""
    if isinstance(options, str) or not isinstance(options, Iterable):
        raise TypeError(f'the options are {brief(options)}: expected a list of strings')
    texts = [*options]
    if not texts:
        raise ValueError('there are no options: give one or more')
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f'options[{n}] is {brief(text)}: expected a string')
        if not text.strip():
            raise ValueError(f'options[{n}] is empty: give a text')
        if IMAGE_TOKEN in text:
            raise ValueError(f'options[{n}] says {IMAGE_TOKEN}, but only the question may')
    return [text.strip() for text in texts]


def encode_options(
    processor: Processor, turns: Sequence[Turn], image_count: int, options: Sequence[str], template: str
) -> EncodedOptions:
    """The ids of each option as the answer to a conversation, in which the images are not expanded.

    They are those that follow the prompt when both are encoded together, as in training, and an end. All
    options begin after the same ids.
    """
    encode = processor.tokenizer.encode
    text = render(template, turns, image_count, processor.chat_template)
    if template in ANSWER_ENDINGS:
        whole = [encode(_conversation(turns, option, image_count, template)) for option in options]
    else:
        space = '' if text[-1:].isspace() else ' '
        end = [] if processor.tokenizer.eos is None else [processor.tokenizer.eos]
        whole = [[*encode(text + space + option), *end] for option in options]
    prompt = encode(text)
    start = len(common_prefix([prompt, *whole]))
    for ids in whole:
        processor.check_ids(ids[start:])
    return EncodedOptions(len(prompt) - start, [ids[start:] for ids in whole])


def _conversation(turns: Sequence[Turn], option: str, image_count: int, template: str) -> str:
    """The text of a conversation with an option as its last answer, up to the end of that answer."""
    text, spans = answer_spans([*turns, Turn('assistant', option)], image_count, template)
    return text[: spans[-1][1]]
