"""Our settings of generation as those of transformers, and its processors of logits."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from vipllava_jax.generation.setting_checks import NUMBERS
from vipllava_jax.generation.settings import GenerationSettings

SAME = ['repetition_penalty', 'no_repeat_ngram_size', 'min_new_tokens', 'exponential_decay_length_penalty']
SAME += ['remove_invalid_values', 'renormalize_logits', 'num_beams', 'num_return_sequences']
SAME += ['length_penalty', 'early_stopping']
LISTS = ['suppress_tokens', 'begin_suppress_tokens', 'forced_eos_token_id']
FILTERS = ['temperature', 'top_h', 'top_k', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff', 'eta_cutoff']


def of_row(settings: GenerationSettings, row: int) -> GenerationSettings:
    """The settings of one row, with one number each."""
    several = {name: x[row] for name in NUMBERS if isinstance(x := getattr(settings, name), tuple)}
    if decay := settings.exponential_decay_length_penalty:
        decay = tuple(x[row] if isinstance(x, tuple) else x for x in decay)
    return dataclasses.replace(settings, **several, exponential_decay_length_penalty=decay)


def keywords(settings: GenerationSettings, eos: Sequence[int]) -> dict[str, Any]:
    """The keywords with which transformers generates with our settings, which must be those of one row."""
    given = {name: getattr(settings, name) for name in SAME}
    given |= {name: [*x] for name in LISTS if (x := getattr(settings, name))}
    biases = [*(settings.sequence_bias or ()), *(((id,), bias) for id, bias in settings.logit_bias or ())]
    if biases:
        given['sequence_bias'] = dict(biases)
    if settings.bad_words_ids:
        given['bad_words_ids'] = [[*ids] for ids in settings.bad_words_ids]
    if settings.temperature > 0:
        given |= {name: getattr(settings, name) for name in FILTERS}
    return given | {'do_sample': settings.temperature > 0, 'eos_token_id': [*eos]}


def processors(settings: GenerationSettings, prompt: int, limit: int, eos: Sequence[int]) -> Any:
    """The processors of transformers for a prompt of `prompt` tokens and at most `limit` new ones."""
    import torch
    from transformers import GenerationConfig, GenerationMixin

    config = GenerationConfig(**keywords(settings, eos), max_length=prompt + limit)
    config._eos_token_tensor = torch.tensor(eos) if len(eos) else None
    model = GenerationMixin()
    model.config = SimpleNamespace(is_encoder_decoder=False)
    found = model._get_logits_processor(config, prompt, logits_processor=user_processors(settings))
    first = next((n for n, p in enumerate(found) if type(p).__name__ not in BEFORE_OPENAI), len(found))
    found.insert(first, OpenAIPenalties(settings, prompt))
    return found


BEFORE_OPENAI = ['SequenceBiasLogitsProcessor', 'RepetitionPenaltyLogitsProcessor']


class OpenAIPenalties:
    """The penalties of presence and frequency, which transformers lacks."""

    def __init__(self, settings: GenerationSettings, prompt: int) -> None:
        self.presence, self.frequency = settings.presence_penalty, settings.frequency_penalty
        self.prompt = prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        for row, ids in enumerate(input_ids[:, self.prompt :].tolist()):
            for id in {*ids} & {*range(scores.shape[1])}:
                scores[row, id] -= self.presence + ids.count(id) * self.frequency
        return scores


def user_processors(settings: GenerationSettings) -> list[Any]:
    """The user's functions of arrays as processors of transformers."""
    import torch

    def of(function: Any) -> Any:
        def processor(input_ids: Any, scores: Any) -> Any:
            lengths = np.full(len(input_ids), input_ids.shape[1])
            return torch.tensor(np.asarray(function(input_ids.numpy(), lengths, scores.numpy())))

        return processor

    return [of(function) for function in settings.processors]
