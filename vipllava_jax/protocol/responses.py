"""Parts of responses that several endpoints have."""

import base64
import io
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vipllava_jax.engine.pieces import TokenLogprobs
from vipllava_jax.engine.reply import Reply
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.token_bytes import token_bytes

LOWEST = -9999.0  # stands for a log-probability of minus infinity, as in OpenAI's API


def now() -> int:
    """The time at which a response is created, in seconds since 1970."""
    return int(time.time())


def finish_reason(reason: str) -> str | None:
    """Why an answer has ended, as OpenAI names it: 'stop' or 'length'; None before its end."""
    return {'': None, 'time': 'length'}.get(reason, reason)


def usage(replies: Iterable[Reply]) -> dict[str, Any]:
    """The numbers of tokens of complete replies."""
    several = [*replies]
    prompts = sum(reply.prompt_tokens for reply in several)
    new = sum(int(reply.ends.lengths.sum()) for reply in several)
    return {
        'prompt_tokens': prompts,
        'completion_tokens': new,
        'total_tokens': prompts + new,
        'prompt_tokens_details': {'cached_tokens': sum(reply.cached_tokens for reply in several)},
    }


def warnings(replies: Iterable[Reply]) -> dict[str, list[str]]:
    """The field for what there is to say about the pictures of replies; none if there is nothing."""
    found = [*dict.fromkeys(warning for reply in replies for warning in reply.warnings)]
    return {'warnings': found} if found else {}


def logprobs_of(
    reply: Reply, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> list[tuple[int, TokenLogprobs]]:
    """The ids of an answer, or of a piece, that are part of its text, with their log-probabilities."""
    ends = reply.question.eos
    return [(id, entry) for id, entry in zip(ids, logprobs, strict=True) if id not in ends]


def token_entries(
    processor: Processor, ids: Sequence[int], logprobs: Sequence[float]
) -> list[dict[str, Any]]:
    """What is reported of each token: {token, bytes, logprob}."""
    several = token_bytes(processor.tokenizer, ids)
    return [
        {'token': data.decode(errors='replace'), 'bytes': [*data], 'logprob': max(logprob, LOWEST)}
        for data, logprob in zip(several, logprobs, strict=True)
    ]


def picture_uri(pictures: np.ndarray) -> str:
    """Pictures Ihw3 uint8, as the model saw them -> the data URI of a PNG, in which they lie side by side."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate([*pictures], axis=1)).save(file, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
