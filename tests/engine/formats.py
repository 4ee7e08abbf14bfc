"""Questions whose answers have a format, and what tells whether an answer has it."""

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import vipllava_jax as vj
from vipllava_jax.engine.answer_format import AnswerFormat
from vipllava_jax.engine.matching import Vocabulary
from vipllava_jax.engine.question import Question, encode

PERSON = {
    'type': 'object',
    'properties': {
        'name': {'type': 'string', 'maxLength': 8},
        'age': {'type': 'integer', 'minimum': 0, 'maximum': 130},
        'tags': {'type': 'array', 'items': {'enum': ['dog', 'sofa', 'train']}, 'maxItems': 3},
    },
    'required': ['name', 'age', 'tags'],
    'additionalProperties': False,
}
REGEX = '(the )?(red|old) (dog|sofa)s?( [0-9]{2})?'
CHOICES = ('yes', 'no', 'a dog that sleeps', 'a dog', '"ü" / 日本 #')
SCHEMA = AnswerFormat('json_schema', PERSON)
FORMATS = (SCHEMA, AnswerFormat('regex', REGEX), AnswerFormat('choice', CHOICES))
SLOTS = 192  # to which the prompts and answers of `masked_at_every_step` are padded
WHOLE = 120  # tokens, which are enough for an answer in each of FORMATS
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {'temperature': 1.0, 'num_return_sequences': 2},
    {'temperature': 1.3, 'top_k': 30, 'top_p': 0.9, 'min_p': 0.01},
    {'repetition_penalty': 1.2, 'no_repeat_ngram_size': 3, 'logprobs': 2},
    {'temperature': 0.8, 'presence_penalty': 0.5, 'min_new_tokens': 20, 'stop': ('zzz',)},
)


def formatted(answer_format: AnswerFormat, text: str = 'What is it?', **settings: Any) -> Question:
    """A question whose answer has a format."""
    whole = vj.GenerationSettings(**{'max_new_tokens': WHOLE, **settings})
    return Question(text, settings=whole, answer_format=answer_format)


def formatted_questions(count: int) -> list[Question]:
    """Questions with formats and all kinds of settings."""
    words = ['What', 'is', 'the', 'red', 'dog', 'waiting', 'for']
    return [
        formatted(FORMATS[n % 3], ' '.join(words[: 1 + n % 7]), seed=n, **SETTINGS[n // 3 % len(SETTINGS)])
        for n in range(count)
    ]


def has_format(text: str, answer_format: AnswerFormat) -> bool:
    """Whether a complete answer has one of these FORMATS."""
    if answer_format.kind == 'regex':
        return bool(re.fullmatch(answer_format.value, text))
    return text in CHOICES if answer_format.kind == 'choice' else is_person(json.loads(text))


def is_person(found: Any) -> bool:
    assert list(found) == ['name', 'age', 'tags']
    assert len(found['name']) <= 8
    assert 0 <= found['age'] <= 130
    return len(found['tags']) <= 3 and {*found['tags']} <= {'dog', 'sofa', 'train'}


def masked_at_every_step(model: vj.Model, question: Question) -> list[int]:
    """The ids of a greedy answer, each the most likely one of those that the format allows."""
    encoded = encode(question, model)
    (matcher,) = Vocabulary(model.processor.tokenizer, model.cfg).matchers(
        question.answer_format, 1, encoded.eos
    )
    ids = encoded.ids.tolist()
    while len(ids) < len(encoded.ids) + encoded.limit:
        logits = np.asarray(_logits(model.params, padded(ids), model.cfg))[0, len(ids) - 1]
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder='little')[: len(logits)]
        ids.append(int(np.where(bits, logits, -np.inf).argmax()))
        assert matcher.accept(ids[-1])
        if ids[-1] in encoded.eos or matcher.is_complete:
            break
    return ids[len(encoded.ids) :]


def padded(ids: list[int]) -> np.ndarray:
    return np.array([ids + [0] * (SLOTS - len(ids))], np.int32)


@partial(jax.jit, static_argnames='cfg')
def _logits(params: Any, tokens: Any, cfg: Any) -> Any:
    return vj.forward(params, tokens, cfg=cfg)


def model_logprobs(model: vj.Model, prompt: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The log-probabilities TV of all tokens in the places of the ids of an answer."""
    logits = _logits(model.params, padded([*prompt.tolist(), *ids]), model.cfg)[0]
    return np.asarray(jax.nn.log_softmax(logits[len(prompt) - 1 : len(prompt) + len(ids) - 1]))
