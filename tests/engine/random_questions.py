"""Random questions of all kinds, and the answers that `generate` gives to each alone."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

import vipllava_jax as vj
from tests.makers import noise
from vipllava_jax.answering.prompts import insert_phrases, mark_images
from vipllava_jax.answering.replies import replies, with_template_stops
from vipllava_jax.engine.question import Question
from vipllava_jax.inputs.padding import pad_ids

PICTURES = [noise(40, 30, seed) for seed in range(4)]
MARK = 'rectangle:8,5,30,25:red'
WORDS = ['what', 'is', 'the', 'red', 'dog', 'within', 'rectangle', 'old', 'sofa', 'people', 'waiting', 'a']
TOKENS = 384  # of the prompts of `alone`, which are padded to one length
NEW = (1, 2, 9, 40, 120)


class Expected(NamedTuple):
    """What is compared of an answer."""

    ids: tuple[int, ...]
    text: str
    finish_reason: str


def random_question(rng: np.random.Generator, most_words: int = 60) -> Question:
    """A question with 0 to 2 pictures, with or without a mark, and with settings of a random kind."""
    images = [PICTURES[n] for n in rng.integers(0, len(PICTURES), rng.choice([0, 1, 1, 2]))]
    words = rng.choice(WORDS, rng.integers(1, rng.choice([6, 20, most_words]))).tolist()
    marks = [MARK] if images and rng.random() < 0.3 else []
    settings = KINDS[rng.integers(len(KINDS))](rng)
    if rng.random() < 0.3:
        settings['stop'] = ('re', 'tan', 'the d')
        settings['keep_stop'] = bool(rng.integers(2))
    if rng.random() < 0.1:
        settings['max_time'] = 1e6
    most = int(rng.choice(NEW))
    if rng.random() < 0.2:
        settings['min_new_tokens'] = min(4, most)
    settings = vj.GenerationSettings(max_new_tokens=most, eos=(2, 390), **settings)
    return Question(' '.join([*words, *['{mark}'] * len(marks)]), images, marks, settings)


def greedy(rng: np.random.Generator) -> dict[str, Any]:
    return {}


def sampled(rng: np.random.Generator) -> dict[str, Any]:
    return {
        'temperature': float(rng.choice([0.5, 1.0, 1.3])),
        'top_k': int(rng.choice([0, 5, 50])),
        'top_p': float(rng.choice([0.8, 1.0])),
        'min_p': float(rng.choice([0.0, 0.1])),
        'seed': int(rng.integers(100)),
    }


def several(rng: np.random.Generator) -> dict[str, Any]:
    return {**sampled(rng), 'num_return_sequences': 2}


def penalized(rng: np.random.Generator) -> dict[str, Any]:
    return {
        **sampled(rng),
        'temperature': float(rng.choice([0.0, 1.0])),
        'repetition_penalty': float(rng.choice([1.0, 1.3])),
        'presence_penalty': float(rng.choice([0.0, 0.5])),
        'frequency_penalty': 0.3,
        'no_repeat_ngram_size': int(rng.choice([0, 2, 3])),
    }


def biased(rng: np.random.Generator) -> dict[str, Any]:
    ids = [int(id) for id in rng.integers(3, 390, 4)]
    return {
        **sampled(rng),
        'bad_words_ids': [[390, 363], ids[:1]],
        'logit_bias': {ids[1]: 2.0},
        'suppress_tokens': ids[2:3],
        'begin_suppress_tokens': ids[3:],
    }


def reported(rng: np.random.Generator) -> dict[str, Any]:
    return {**penalized(rng), 'logprobs': 3}


KINDS = (greedy, sampled, several, penalized, biased, reported)


def expected(answers: Any) -> list[Expected]:
    """What is compared of the answers of a reply of the engine."""
    return [Expected(answer.ids, answer.text, answer.finish_reason) for answer in answers]


def alone(model: vj.Model, question: Question) -> tuple[list[Expected], list[Any]]:
    """The answers of `generate` to one question, with the texts of `answer`; and what it reports of tokens.

    Shapes are padded and settings are added that change no answer, so that few programs are compiled.
    """
    images, drawn = mark_images(list(question.images), question.marks)
    batch = model.processor(insert_phrases(question.prompt, drawn), images)
    tokens = pad_ids([batch.tokens[0, : batch.lengths[0]]], TOKENS, model.cfg.pad)
    shown = np.zeros((1, 2, *batch.images.shape[2:]), np.float32)
    shown[:, : len(images)] = batch.images
    settings = with_template_stops(question.settings, model.processor, question.template)
    settings = dataclasses.replace(settings, logprobs=3, logit_bias=settings.logit_bias or {206: 0.0})
    found = replies(model, batch._replace(tokens=tokens, images=shown), settings)
    texts = [reply.text() for reply in found]
    answers = [reply.generated() for reply in found]
    compared = [
        Expected(tuple(answer.tokens.tolist()), text, answer.finish_reason)
        for answer, text in zip(answers, texts, strict=True)
    ]
    return compared, answers
