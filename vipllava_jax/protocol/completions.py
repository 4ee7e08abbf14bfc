"""/v1/completions: texts that continue prompts, without pictures and without a template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from vipllava_jax.engine.pieces import Piece, TokenLogprobs
from vipllava_jax.engine.question import Question
from vipllava_jax.engine.reply import Reply
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.protocol.answer_formats import answer_format
from vipllava_jax.protocol.context import prompt_ids, with_room
from vipllava_jax.protocol.conversation import checked_text
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.models import check_model_name
from vipllava_jax.protocol.pictures import NOTHING_FETCHED
from vipllava_jax.protocol.requests import CompletionRequest
from vipllava_jax.protocol.responses import finish_reason, logprobs_of, token_entries, usage
from vipllava_jax.protocol.served import Served
from vipllava_jax.protocol.settings import generation_settings, params_of, token_limit

OBJECT = 'text_completion'  # the response, and each event
TEMPLATE = 'plain'  # which adds nothing to a prompt
DEFAULT_TOKENS = 16  # OpenAI's default for this endpoint


@dataclass
class CompletionExchange(Exchange):
    """A request to /v1/completions, with a question for each prompt, and how their answers are written."""

    answers: int = 1  # to each prompt
    offsets: dict[int, int] = field(default_factory=dict)  # characters of the tokens streamed by each choice

    def body(self, replies: Sequence[Reply]) -> dict[str, Any]:
        choices = [
            self._choice(
                index * self.answers + n,
                answer.text,
                answer.finish_reason,
                _logprobs(reply, answer.ids, answer.logprobs, 0),
            )
            for index, reply in enumerate(replies)
            for n, answer in enumerate(reply.result(timeout=0))
        ]
        return {**self.head(OBJECT), 'choices': choices, 'usage': usage(replies)}

    def events(self, index: int, reply: Reply, piece: Piece) -> list[dict[str, Any]]:
        if not (piece.text or piece.logprobs or piece.finish_reason):
            return []
        n = index * self.answers + piece.sample
        logprobs = _logprobs(reply, piece.ids, piece.logprobs, self.offsets.get(n, 0))
        if logprobs is not None:
            self.offsets[n] = self.offsets.get(n, 0) + len(''.join(logprobs['tokens']))
        usage = {'usage': None} if self.include_usage else {}
        choice = self._choice(n, piece.text, piece.finish_reason, logprobs)
        return [{**self.head(OBJECT), 'choices': [choice], **usage}]

    def closing(self, replies: Sequence[Reply]) -> list[dict[str, Any]]:
        if not self.include_usage:
            return []
        return [{**self.head(OBJECT), 'choices': [], 'usage': usage(replies)}]

    def _choice(self, n: int, text: str, reason: str, logprobs: Any) -> dict[str, Any]:
        return {'index': n, 'text': text, 'logprobs': logprobs, 'finish_reason': finish_reason(reason)}


def completion_exchange(
    request: CompletionRequest,
    served: Served,
    id: str,
    fetched: Mapping[str, ImageSource] = NOTHING_FETCHED,
) -> CompletionExchange:
    """A request -> its exchange; `id` is that of the request. Raises ApiError."""
    check_model_name(request.model, served)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    _check_numbers(prompts, request, served)
    n = request.n or 1
    settings = generation_settings(request, served, answers=n, logprobs=request.logprobs)
    expected_format = answer_format(request)
    questions = []
    for p, prompt in enumerate(prompts):
        name = 'prompt' if isinstance(request.prompt, str) else f'prompt[{p}]'
        turns = [Turn('user', _checked(prompt, name))]
        tokens = len(prompt_ids(turns, 0, TEMPLATE, served, name))
        room = with_room(settings, tokens, token_limit(request), served, name, DEFAULT_TOKENS)
        questions.append(
            Question(
                turns,
                settings=room,
                template=TEMPLATE,
                id=id,
                answer_format=expected_format,
                priority=request.priority or 0,
            )
        )
    return CompletionExchange(
        f'cmpl-{id}',
        served.name,
        tuple(questions),
        bool(request.stream),
        params_of(request, 'prompt'),
        request.wants_usage,
        answers=n,
    )


def _checked(prompt: str, name: str) -> str:
    if not prompt.strip():
        raise ApiError(400, f'{name} is empty: give a text to continue', name)
    return checked_text(prompt, name)


def _check_numbers(prompts: Sequence[str], request: CompletionRequest, served: Served) -> None:
    """Raises ApiError for more prompts or log-probabilities than a request may ask for."""
    limits = served.limits
    if len(prompts) > limits.prompts:
        raise ApiError(400, f'prompt has {len(prompts)} texts, expected at most {limits.prompts}', 'prompt')
    if (request.logprobs or 0) > limits.top_logprobs:
        message = f'logprobs is {request.logprobs}, expected at most {limits.top_logprobs}'
        raise ApiError(400, message, 'logprobs')


def _logprobs(
    reply: Reply, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None, offset: int
) -> dict[str, Any] | None:
    """Log-probabilities as this endpoint writes them; `offset` counts the characters before."""
    if logprobs is None:
        return None
    found = logprobs_of(reply, ids, logprobs)
    entries = token_entries(reply.processor, [id for id, _ in found], [entry.logprob for _, entry in found])
    tops = [  # the token itself is among them; of those with the same text, the likeliest comes last
        [token, *reversed(token_entries(reply.processor, entry.top_ids, entry.top_logprobs))]
        for token, (_, entry) in zip(entries, found, strict=True)
    ]
    tokens: list[str] = [entry['token'] for entry in entries]
    return {
        'tokens': tokens,
        'token_logprobs': [entry['logprob'] for entry in entries],
        'top_logprobs': [{top['token']: top['logprob'] for top in several} for several in tops],
        'text_offset': [*accumulate(map(len, tokens), initial=offset)][:-1],
    }
