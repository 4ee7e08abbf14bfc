"""/v1/chat/completions: one question about the messages of a chat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vipllava_jax.engine.pieces import Answer, Piece, TokenLogprobs
from vipllava_jax.engine.question import Question
from vipllava_jax.engine.reply import Reply
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.protocol.answer_formats import answer_format
from vipllava_jax.protocol.context import prompt_ids, template_of, with_room
from vipllava_jax.protocol.conversation import pictures_in, read_conversation
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.models import check_model_name
from vipllava_jax.protocol.pictures import NOTHING_FETCHED
from vipllava_jax.protocol.requests import ChatRequest
from vipllava_jax.protocol.responses import (
    finish_reason,
    logprobs_of,
    picture_uri,
    token_entries,
    usage,
    warnings,
)
from vipllava_jax.protocol.served import Served
from vipllava_jax.protocol.settings import generation_settings, params_of, token_limit


@dataclass
class ChatExchange(Exchange):
    """A request to /v1/chat/completions, and how its answers are written."""

    image: dict[str, str] | None = None  # the field for what the model saw; None: not written yet

    def body(self, replies: Sequence[Reply]) -> dict[str, Any]:
        (reply,) = replies
        choices = [self._choice(n, answer, reply) for n, answer in enumerate(reply.result(timeout=0))]
        shared = {'choices': choices, 'usage': usage(replies)}
        return {**self.head('chat.completion'), **shared, **warnings(replies)}

    def opening(self) -> list[dict[str, Any]]:
        (question,) = self.questions
        assert question.settings is not None
        role = {'role': 'assistant', 'content': ''}
        return [self._chunk(n, role) for n in range(question.settings.num_return_sequences)]

    def events(self, index: int, reply: Reply, piece: Piece) -> list[dict[str, Any]]:
        if not (piece.text or piece.logprobs or piece.finish_reason):
            return []
        delta: dict[str, Any] = {'content': piece.text} if piece.text else {}
        if not piece.finish_reason:
            return [self._chunk(piece.sample, delta, _logprobs(reply, piece.ids, piece.logprobs))]
        delta |= self._image(reply)
        last = self._chunk(piece.sample, delta, _logprobs(reply, piece.ids, piece.logprobs))
        last['choices'][0]['finish_reason'] = finish_reason(piece.finish_reason)
        return [last | warnings([reply])]

    def closing(self, replies: Sequence[Reply]) -> list[dict[str, Any]]:
        if not self.include_usage:
            return []
        return [{**self.head('chat.completion.chunk'), 'choices': [], 'usage': usage(replies)}]

    def _choice(self, n: int, answer: Answer, reply: Reply) -> dict[str, Any]:
        message = {'role': 'assistant', 'content': answer.text, 'refusal': None}
        return {
            'index': n,
            'message': message | self._image(reply),
            'logprobs': _logprobs(reply, answer.ids, answer.logprobs),
            'finish_reason': finish_reason(answer.finish_reason),
        }

    def _image(self, reply: Reply) -> dict[str, str]:
        """The field for what the model saw, if the request asks for it; the answers to a prompt share it."""
        if self.image is None:
            self.image = {} if reply.images is None else {'image': picture_uri(reply.images)}
        return self.image

    def _chunk(self, n: int, delta: Mapping[str, Any], logprobs: Any = None) -> dict[str, Any]:
        """A chunk with new text; with the usage at the end, all others say that they have none."""
        choice = {'index': n, 'delta': {**delta}, 'logprobs': logprobs, 'finish_reason': None}
        usage = {'usage': None} if self.include_usage else {}
        return {**self.head('chat.completion.chunk'), 'choices': [choice], **usage}


def chat_exchange(
    request: ChatRequest, served: Served, id: str, fetched: Mapping[str, ImageSource] = NOTHING_FETCHED
) -> ChatExchange:
    """A request -> its exchange; `id` is that of the request, and `fetched` has pictures by their URLs.

    Raises ApiError.
    """
    check_model_name(request.model, served)
    template = template_of(request.template, served)
    conversation = read_conversation(request.messages, served.limits, fetched)
    settings = generation_settings(
        request, served, answers=request.n or 1, logprobs=_top_logprobs(request, served)
    )
    ids = prompt_ids(conversation.turns, len(conversation.images), template, served, 'messages')
    question = Question(
        conversation.turns,
        conversation.images,
        tuple(conversation.marks),
        with_room(settings, len(ids), token_limit(request), served, 'messages'),
        template,
        conversation.fit or served.fit,
        id,
        answer_format=answer_format(request),
        priority=request.priority or 0,
        keep_images=bool(request.return_image),
    )
    pictures = [path for path, _ in pictures_in(request.messages)]
    return ChatExchange(
        f'chatcmpl-{id}',
        served.name,
        (question,),
        bool(request.stream),
        params_of(request, 'messages', pictures[0] if len(pictures) == 1 else 'messages'),
        request.wants_usage,
    )


def _top_logprobs(request: ChatRequest, served: Served) -> int | None:
    """How many of the likeliest tokens are reported; None: no log-probabilities."""
    count, most = request.top_logprobs or 0, served.limits.top_logprobs
    if count > most:
        raise ApiError(400, f'top_logprobs is {count}, expected at most {most}', 'top_logprobs')
    if count and not request.logprobs:
        raise ApiError(400, f'top_logprobs is {count}: set logprobs to true as well', 'top_logprobs')
    return count if request.logprobs else None


def _logprobs(
    reply: Reply, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    found = logprobs_of(reply, ids, logprobs)
    entries = token_entries(reply.processor, [id for id, _ in found], [entry.logprob for _, entry in found])
    for token, (_, entry) in zip(entries, found, strict=True):
        token['top_logprobs'] = token_entries(reply.processor, entry.top_ids, entry.top_logprobs)
    return {'content': entries, 'refusal': None}
