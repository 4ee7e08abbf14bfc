"""What is reported of the tokens of an answer: their texts and log-probabilities, as JSON."""

import math
from typing import Any

from vipllava_jax.generation.result import GeneratedAnswer
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.token_bytes import token_bytes


def token_reports(processor: Processor, answer: GeneratedAnswer) -> list[dict[str, Any]]:
    """`{token, id, logprob, top: [{token, id, logprob}, …]}` for each token of an answer with logprobs.

    A token that is a part of a character also has its `bytes`. `top`, the most likely tokens, is absent if
    none were asked for.
    """
    assert answer.logprobs is not None
    reports = _reports(processor, answer.tokens.tolist(), answer.logprobs.tolist())
    if answer.top_ids is not None and answer.top_logprobs is not None:
        for report, ids, logprobs in zip(reports, answer.top_ids, answer.top_logprobs, strict=True):
            report['top'] = _reports(processor, ids.tolist(), logprobs.tolist())
    return reports


def _reports(processor: Processor, ids: list[int], logprobs: list[float]) -> list[dict[str, Any]]:
    several = token_bytes(processor.tokenizer, ids)
    return [_report(*parts) for parts in zip(several, ids, logprobs, strict=True)]


def _report(data: bytes, id: int, logprob: float) -> dict[str, Any]:
    """The report of one token; JSON has no infinity and no NaN."""
    text = data.decode(errors='replace')
    part = {'bytes': [*data]} if text.encode() != data else {}
    rounded = round(logprob, 6) + 0.0 if math.isfinite(logprob) else None  # 0.0 instead of -0.0
    return {'token': text, **part, 'id': id, 'logprob': rounded}
