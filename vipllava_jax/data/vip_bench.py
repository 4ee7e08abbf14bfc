"""Rows of ViP-Bench, whose questions have an id and a text, and whose answers its own evaluator scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.data.marking import MarkedConversation
from vipllava_jax.data.region_prompts import make_conversation
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.messages import brief

FIT: Fit = 'pad'
MAX_NEW_TOKENS = 1024  # the maximum per answer
ID, TEXT = 'question_id', 'text'
OTHERS = ('question', 'conversations')  # fields of rows that are not of ViP-Bench


def is_vip_bench(fields: Mapping[str, Any]) -> bool:
    """Whether a row is a question of ViP-Bench."""
    return {ID, TEXT} <= fields.keys() and not any(name in fields for name in OTHERS)


def question_id(fields: Mapping[str, Any]) -> str:
    """The id of a question; ValueError if it is blank, or neither a string nor a number."""
    value = fields[ID]
    if not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f'"{ID}" is {brief(value)}, expected a string or a whole number')
    return str(value)


def vip_bench_conversation(fields: Mapping[str, Any], images: int, folder: Path) -> MarkedConversation:
    """The question and an empty answer, and the marks on each of its images; ValueError if invalid."""
    turns = [{'from': 'human', 'value': fields[TEXT]}, {'from': 'gpt', 'value': ''}]
    return make_conversation({**fields, 'id': None, 'conversations': turns}, images, folder, None)
