"""Our settings of generation as those of transformers: its processors of logits, and its answers."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tests import peer
from tests.rows import alone
from vipllava_jax.generation.setting_checks import NUMBERS
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.padding import pad_ids

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


class Answer(NamedTuple):
    """One answer of transformers, without padding."""

    tokens: np.ndarray  # n
    scores: np.ndarray  # n
    step_scores: np.ndarray | None  # nV, of every token; None for beams
    sequence_score: float | None  # for beams


def generate(
    theirs: Any, batch: Batch, settings: GenerationSettings, eos: Sequence[int], pad: int
) -> list[Answer]:
    """The answers of transformers to a batch, without samples.

    Each row is generated alone where rows have their own numbers, or where padding would be seen as ids.
    """
    rows = range(len(batch.lengths))
    own = [of_row(settings, row) for row in rows]
    if settings.no_repeat_ngram_size or any(row != settings for row in own):
        return [answer for row in rows for answer in _generate(theirs, alone(batch, row), own[row], eos, pad)]
    return _generate(theirs, batch, settings, eos, pad)


def _generate(
    theirs: Any, batch: Batch, settings: GenerationSettings, eos: Sequence[int], pad: int
) -> list[Answer]:
    new = settings.max_new_tokens
    options = dict(max_new_tokens=new, pad_token_id=pad, output_scores=True)
    out = peer.generate(theirs, batch, **options, **keywords(settings, eos))
    has_beams = settings.num_beams > 1
    beams = {'beam_indices': out.beam_indices} if has_beams else {}
    scores = theirs.compute_transition_scores(out.sequences, out.scores, normalize_logits=False, **beams)
    answers = []
    for a, ids in enumerate(out.sequences[:, batch.tokens.shape[1] :].numpy()):
        is_end = np.isin(ids, eos)
        n = is_end.argmax() + 1 if is_end.any() else min(len(ids), new)
        steps = None if has_beams else np.stack([step[a].numpy() for step in out.scores[:n]])
        total = out.sequences_scores[a].item() if has_beams else None
        answers.append(Answer(ids[:n], scores[a, :n].numpy(), steps, total))
    return answers


def forced(
    theirs: Any, batch: Batch, settings: GenerationSettings, eos: Sequence[int], answers: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The scores nV of every token in each step of given answers n, by the processors of transformers."""
    import torch

    longest = max(map(len, answers))
    tokens = torch.tensor(pad_ids(answers, longest, 0), dtype=torch.long)
    first = batch.tokens.shape[1]

    def force(input_ids: Any, scores: Any) -> Any:
        next_ids = tokens[:, input_ids.shape[1] - first, None]
        return torch.full_like(scores, -torch.inf).scatter(1, next_ids, 0.0)

    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0, output_logits=True)
    out = peer.generate(theirs, batch, max_new_tokens=longest, logits_processor=[force], **options)
    scores = []
    for row, answer in enumerate(answers):
        own, start = of_row(settings, row), int(batch.lengths[row])
        processors_ = processors(own, start, own.max_new_tokens, eos)
        ids = torch.tensor([*batch.tokens[row, :start], *answer])[None].long()
        steps = [processors_(ids[:, : start + n], out.logits[n][row, None]) for n in range(len(answer))]
        scores.append(torch.cat(steps).numpy())
    return scores
