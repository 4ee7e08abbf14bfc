"""How many tokens a prompt has, and how many the context leaves to its answer."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from vipllava_jax.engine.question import MAX_TOKEN_CHARACTERS
from vipllava_jax.generation.settings import DEFAULT_NEW_TOKENS, GenerationSettings
from vipllava_jax.inputs.prompts import Turn, check_template
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.served import Served


class TokenLimit(NamedTuple):
    """The most new tokens that a request asks for, None for the default, and the field that says so."""

    tokens: int | None
    field: str = 'max_tokens'


def context_length(served: Served) -> int:
    """The most tokens that a prompt and its answer have."""
    context = served.model.cfg.text.context
    return context if served.max_model_len is None else min(served.max_model_len, context)


def template_of(name: str | None, served: Served) -> str:
    """The template that a request names, or else that of the server; ApiError if there is no such one."""
    template = served.template if name is None else name
    try:
        check_template(template, served.model.processor.chat_template)
    except ValueError as error:
        raise ApiError(400, str(error), 'template') from None
    return template


def prompt_ids(
    turns: Sequence[Turn], image_count: int, template: str, served: Served, param: str
) -> list[int]:
    """The ids of a prompt; ApiError, which names the field, if it cannot be encoded or is too long."""
    check_characters(sum(len(turn.text) for turn in turns), served, param)
    try:
        ids: list[int] = served.model.processor.encode(turns, image_count, template)
    except ValueError as error:
        raise ApiError(400, str(error), param) from None
    return ids


def check_characters(count: int, served: Served, param: str) -> None:
    """Raises ApiError for a text that is too long for the context, which may take seconds to encode."""
    context = context_length(served)
    if count > MAX_TOKEN_CHARACTERS * context:
        message = f'the prompt has {count} characters, which the context of {context} tokens cannot hold'
        raise _too_long(f'{message}: shorten it', param)


def with_room(
    settings: GenerationSettings,
    prompt_tokens: int,
    limit: TokenLimit,
    served: Served,
    param: str,
    default: int | None = None,
) -> GenerationSettings:
    """The settings with the `limit` of new tokens of the request, or else as many of the default as fit.

    The default is `default`, or else the model's. Raises ApiError if the context has no room for the
    limit, or if that is less than the settings demand.
    """
    context = context_length(served)
    left = context - prompt_tokens
    if left < 1:
        raise _too_long(
            f'the prompt has {prompt_tokens} tokens, but the context has {context}, one of them for the '
            'answer: shorten it',
            param,
        )
    if limit.tokens is not None and limit.tokens > left:
        raise _too_long(
            f'a prompt of {prompt_tokens} tokens and {limit.tokens} new ones exceed the context of '
            f'{context}: ask for at most {left}',
            limit.field,
        )
    usual = served.model.settings.per_row('max_new_tokens', 1, none=DEFAULT_NEW_TOKENS)
    most = limit.tokens or min(default or int(usual[0]), left)
    smallest = int(settings.per_row('min_new_tokens', 1, none=0)[0])
    if smallest > most:
        message = f'min_tokens is {smallest}, but there are at most {most} new tokens'
        raise ApiError(400, f'{message}: ask for more with {limit.field}', 'min_tokens')
    return dataclasses.replace(settings, max_new_tokens=most)


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param, 'context_length_exceeded')
