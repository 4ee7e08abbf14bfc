"""Answers a question about images with marks."""

from collections.abc import Sequence
from typing import Any

from vipllava_jax.answering.prompts import Marks, insert_phrases, mark_images, single_prompt
from vipllava_jax.answering.replies import replies, with_template_stops
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.settings import GenerationSettings, with_overrides
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE
from vipllava_jax.messages import brief


def answer(
    model: Model,
    question: str,
    image: ImageSource | Sequence[ImageSource] | None = None,
    *,
    marks: Marks = (),
    settings: GenerationSettings | None = None,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
) -> str:
    """The model's answer to a question about an image, or several, on which the marks are drawn.

    An image is a path, the bytes of a file or a PIL image; None asks without one. Marks are Mark objects or
    strings such as 'rectangle:40,60,180,220:red'; a string that starts with 'N/' is drawn on image N. {mark}
    (or {mark1}, {mark2}, …) in the question is replaced by the phrase of a mark, 'within the red rectangle'.
    The answer ends at the stop strings of the template. `settings` default to those of the model, and `fit`,
    how an image is made square, to that of its processor.

    Raises ValueError, TypeError or FileNotFoundError before anything long runs.
    """
    _check_arguments(model, question)
    given: list[Any] = [] if image is None else [*image] if isinstance(image, list | tuple) else [image]
    images, drawn = mark_images(given, marks)
    prompt = insert_phrases(question, drawn)
    settings = with_overrides(model.settings if settings is None else settings, {})
    if (n := settings.num_return_sequences) > 1:
        raise ValueError(
            f'num_return_sequences is {n}, but answer returns one text: call generate for several'
        )
    with single_prompt():
        batch = model.processor(prompt, images, template=template, fit=fit)
        settings = with_template_stops(settings, model.processor, template)
        (reply,) = replies(model, batch, settings)
    return reply.text()


def _check_arguments(model: Model, question: str) -> None:
    if not isinstance(model, Model):
        raise TypeError(f'the model is {brief(model)}: expected a Model, which load returns')
    if not isinstance(question, str):
        raise TypeError(
            f'the question is {brief(question)}: expected a string; model.processor takes messages and lists'
        )
    if not question.strip():
        raise ValueError('the question is empty: ask something')
    if model.processor is None:
        raise ValueError(
            'the model has no processor, because its folder has no tokenizer: load a folder with '
            'tokenizer.json'
        )
