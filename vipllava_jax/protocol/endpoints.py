"""The endpoints that answer questions: what their requests are, and how they become exchanges."""

from collections.abc import Callable
from typing import NamedTuple

from vipllava_jax.protocol.chat import chat_exchange
from vipllava_jax.protocol.completions import completion_exchange
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.regions import regions_exchange
from vipllava_jax.protocol.requests import ChatRequest, CompletionRequest, GenerationRequest, RegionsRequest


class Endpoint(NamedTuple):
    """The type of an endpoint's requests, and the function (request, served, id, fetched) -> Exchange."""

    request: type[GenerationRequest]
    exchange: Callable[..., Exchange]


ENDPOINTS: dict[str, Endpoint] = {
    '/v1/chat/completions': Endpoint(ChatRequest, chat_exchange),
    '/v1/completions': Endpoint(CompletionRequest, completion_exchange),
    '/v1/regions': Endpoint(RegionsRequest, regions_exchange),
}
