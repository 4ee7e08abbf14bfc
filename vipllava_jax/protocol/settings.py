"""The settings of generation that a request asks for, under the names of OpenAI and vLLM."""

import dataclasses
from typing import Any

from vipllava_jax.engine.question import setting_in
from vipllava_jax.generation.setting_checks import LARGEST_SEED
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.generation.stopping import eos_ids
from vipllava_jax.inputs.tokenizer import Tokenizer, call_library
from vipllava_jax.protocol.answer_formats import format_field
from vipllava_jax.protocol.context import TokenLimit
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.requests import GenerationRequest
from vipllava_jax.protocol.served import Limits, Served

# What the model's own settings may ask for, but the engine does not do, or a request decides.
OF_REQUESTS: dict[str, Any] = {
    'num_return_sequences': 1,
    'num_beams': 1,
    'prompt_lookup_num_tokens': 0,
    'logprobs': None,
    'max_new_tokens': None,
    'processors': (),
}
OTHER_NAMES = {  # of fields, by those of settings
    'num_return_sequences': 'n',
    'max_new_tokens': 'max_tokens',
    'min_new_tokens': 'min_tokens',
    'keep_stop': 'include_stop_str_in_output',
    'eos': 'stop_token_ids',
    'bad_words_ids': 'bad_words',
    'sequence_bias': 'logit_bias',
}
SAME_NAMES = (
    *('temperature', 'top_p', 'min_p', 'repetition_penalty', 'presence_penalty', 'frequency_penalty'),
    'logit_bias',
)


def generation_settings(
    request: GenerationRequest, served: Served, *, answers: int = 1, logprobs: int | None = None
) -> GenerationSettings:
    """The settings for each prompt of a request, without the number of its tokens.

    They are the model's where the request says nothing. `logprobs` is the number of likeliest tokens that are
    reported. Raises ApiError, whose `param` is the field.
    """
    limits, model, base = served.limits, served.model, served.model.settings
    changes: dict[str, Any] = {name: getattr(request, name) for name in SAME_NAMES}
    changes |= {
        'num_return_sequences': answers,
        'logprobs': logprobs,
        'top_k': None if request.top_k is None else max(request.top_k, 0),
        'min_new_tokens': request.min_tokens,
        'seed': None if request.seed is None else request.seed % (LARGEST_SEED + 1),
        'stop': _stop_strings(request, base, limits),
        'keep_stop': request.include_stop_str_in_output,
        'eos': _end_ids(request, base, served),
        'bad_words_ids': _bad_words(request, model.processor.tokenizer),
    }
    _check_answers(answers, changes['temperature'], base, limits)
    _check_bias(request, model.cfg.text.vocab)
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        return dataclasses.replace(base, **OF_REQUESTS | given)
    except ValueError as error:
        raise ApiError(400, str(error), _field_of(setting_in(str(error)))) from None


def params_of(request: GenerationRequest, prompt: str, images: str = '') -> dict[str, str]:
    """By each part of a question, the field of the request that it comes from.

    `prompt` and `images` are the fields of the text and the pictures; the others follow from the request.
    """
    settings = {name: _field_of(name) for name in GenerationSettings.__dataclass_fields__}
    named = {name: field for name, field in settings.items() if field}
    limit = {'max_new_tokens': token_limit(request).field}
    return {**named, **limit, 'prompt': prompt, 'images': images, 'answer_format': format_field(request)}


def _field_of(setting: str) -> str | None:
    """The field of requests for a setting of generation; None if they have none."""
    name = OTHER_NAMES.get(setting, setting)
    return name if name in GenerationRequest.__struct_fields__ or name in ('n', 'logprobs') else None


def token_limit(request: GenerationRequest) -> TokenLimit:
    """The most new tokens that a request asks for, under the newer name or the older one."""
    if request.max_completion_tokens is None:
        return TokenLimit(request.max_tokens)
    return TokenLimit(request.max_completion_tokens, 'max_completion_tokens')


def _stop_strings(request: GenerationRequest, base: GenerationSettings, limits: Limits) -> tuple[str, ...]:
    given = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(given) > limits.stop_strings:
        raise ApiError(400, f'stop has {len(given)} strings, expected at most {limits.stop_strings}', 'stop')
    return tuple(dict.fromkeys((*base.stop, *given)))


def _end_ids(request: GenerationRequest, base: GenerationSettings, served: Served) -> tuple[int, ...] | None:
    """The ids that end an answer; None: those of the model."""
    if not request.ignore_eos and not request.stop_token_ids:
        return None
    cfg = served.model.cfg
    _check_vocabulary('stop_token_ids', request.stop_token_ids or (), cfg.text.vocab)
    own = () if request.ignore_eos else eos_ids(base, cfg)
    return tuple(dict.fromkeys((*own, *(request.stop_token_ids or ()))))


def _bad_words(request: GenerationRequest, tokenizer: Tokenizer) -> list[list[int]] | None:
    """The ids of each word, at the start of a text and after a space."""
    if not request.bad_words:
        return None
    forms = [form for word in request.bad_words for form in (word, f' {word.lstrip()}')]
    found = dict.fromkeys(tuple(_ids_in_a_line(tokenizer, form)) for form in forms)
    return [[*ids] for ids in found if ids]


def _ids_in_a_line(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text after a line break, where no tokenizer puts a space before it."""

    def encode(text: str) -> list[int]:
        ids: list[int] = call_library(tokenizer.backend.encode, text, add_special_tokens=False).ids
        return ids

    line_break, ids = encode('\n'), encode(f'\n{text}')
    follows = ids[: len(line_break)] == line_break
    return ids[len(line_break) :] if follows else encode(text)


def _check_answers(answers: int, temperature: float | None, base: GenerationSettings, limits: Limits) -> None:
    if answers > limits.answers:
        raise ApiError(400, f'n is {answers}, expected at most {limits.answers}', 'n')
    if answers > 1 and not (base.temperature if temperature is None else temperature):
        reason = 'is the default of the model' if temperature is None else 'is asked for'
        raise ApiError(
            400,
            f'n is {answers}, but at temperature 0, which {reason}, the answers would be equal: set a '
            'temperature above 0',
            'n',
        )


def _check_bias(request: GenerationRequest, vocab: int) -> None:
    for id in request.logit_bias or ():
        if not (id.isascii() and id.isdigit() and len(id) <= 10):
            raise ApiError(400, f'logit_bias has the key {id!r}: expected the id of a token', 'logit_bias')
    _check_vocabulary('logit_bias', map(int, request.logit_bias or ()), vocab)


def _check_vocabulary(name: str, ids: Any, vocab: int) -> None:
    largest = max(ids, default=0)
    if largest >= vocab:
        raise ApiError(400, f'{name} holds the id {largest}, but the vocabulary ends at {vocab - 1}', name)
