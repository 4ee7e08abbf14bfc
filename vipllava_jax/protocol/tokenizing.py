"""/tokenize: the ids of a text, or of the prompt that the messages of a chat become."""

from typing import Any

from vipllava_jax.inputs.tokenizer import call_library
from vipllava_jax.protocol.context import check_characters, context_length, prompt_ids, template_of
from vipllava_jax.protocol.conversation import read_conversation
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.models import check_model_name
from vipllava_jax.protocol.requests import TokenizeRequest, remote_urls
from vipllava_jax.protocol.served import Served


def tokenize(request: TokenizeRequest, served: Served) -> dict[str, Any]:
    """The ids, and their number; a picture stands for as many as it has features. Raises ApiError."""
    if request.model is not None:
        check_model_name(request.model, served)
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, 'expected either prompt or messages: give one of them', 'prompt')
    ids = _ids_of_messages(request, served) if request.prompt is None else _ids_of_prompt(request, served)
    return {'count': len(ids), 'max_model_len': context_length(served), 'tokens': ids}


def _ids_of_prompt(request: TokenizeRequest, served: Served) -> list[int]:
    assert request.prompt is not None
    check_characters(len(request.prompt), served, 'prompt')
    tokenizer = served.model.processor.tokenizer
    try:
        if request.add_special_tokens is False:
            ids: list[int] = call_library(
                tokenizer.backend.encode, request.prompt, add_special_tokens=False
            ).ids
            return ids
        return [*tokenizer.encode(request.prompt)]
    except ValueError as error:
        raise ApiError(400, str(error), 'prompt') from None


def _ids_of_messages(request: TokenizeRequest, served: Served) -> list[int]:
    assert request.messages is not None
    not_read = dict.fromkeys(remote_urls(request), b'')
    conversation = read_conversation(request.messages, served.limits, not_read)
    template = template_of(request.template, served)
    return prompt_ids(conversation.turns, len(conversation.images), template, served, 'messages')
