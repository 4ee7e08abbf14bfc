"""Answers a question about images with marks."""

import dataclasses
from collections.abc import Sequence

from vipllava_jax.answering.prompts import Marks, image_list, insert_phrases, mark_images, single_prompt
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
    The answer ends at the stop strings of the template. `settings` default to those of the model, of which
    the first answer is returned if they ask for several: settings of your own that do so are a ValueError,
    because `generate` returns all of them. `fit`, how an image is made square, defaults to that of the
    processor.

    Raises ValueError, TypeError or FileNotFoundError before anything long runs.
    """
    check_model(model)
    check_question(question)
    images, drawn = mark_images(image_list(image), marks)
    prompt = insert_phrases(question, drawn)
    advice = 'answer returns one text: generate returns all answers, or call answer with several seeds'
    settings = for_one_answer(settings, model.settings, advice)
    with single_prompt():
        batch = model.processor(prompt, images, template=template, fit=fit)
        settings = with_template_stops(settings, model.processor, template)
        (reply,) = replies(model, batch, settings)
    return reply.text()


def for_one_answer(
    settings: GenerationSettings | None, defaults: GenerationSettings, advice: str
) -> GenerationSettings:
    """The settings, or the defaults for a single answer, which is the first of those that they ask for.

    Raises ValueError, with the reason and advice, if the settings ask for several.
    """
    if settings is None:
        return dataclasses.replace(defaults, num_return_sequences=1)
    settings = with_overrides(settings, {})
    if (n := settings.num_return_sequences) > 1:
        raise ValueError(f'num_return_sequences is {n}, but {advice}')
    return settings


def check_question(question: str) -> None:
    """Raises TypeError for what is not a text, and ValueError for an empty one."""
    if not isinstance(question, str):
        raise TypeError(
            f'the question is {brief(question)}: expected a string; model.processor takes messages and lists'
        )
    if not question.strip():
        raise ValueError('the question is empty: ask something')


def check_model(model: Model) -> None:
    """Raises TypeError for what is not a Model, and ValueError for one without a processor."""
    if not isinstance(model, Model):
        raise TypeError(f'the model is {brief(model)}: expected a Model, which load returns')
    if model.processor is None:
        raise ValueError(
            'the model has no processor, because its folder has no tokenizer: load a folder with '
            'tokenizer.json'
        )
