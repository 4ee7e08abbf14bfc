"""Tiny random models of transformers, for comparison with ours."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.hugging_face import to_hugging_face
from vipllava_jax.inputs.batch import Batch


def model(cfg: Config, seed: int = 0, **fields: Any) -> Any:
    """A transformers model with the config and further fields of config.json, float32, all weights random."""
    import torch
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    torch.set_num_threads(1)  # for tiny models, threads would mostly wait for each other
    torch.manual_seed(seed)
    data = to_hugging_face(cfg) | fields
    if cfg.projector_norm:
        peer = VipLlavaForConditionalGeneration(VipLlavaConfig(**data))
    else:
        peer = LlavaForConditionalGeneration(LlavaConfig(**data))
    with torch.no_grad():
        for w in peer.parameters():
            if w.ndim > 1:
                w.normal_(std=w.shape[-1] ** -0.5)
            else:
                w.add_(torch.randn_like(w) * 0.2)
    return peer.eval()


def run(peer: Any, batch: Batch, **settings: Any) -> Any:
    """The forward pass of the transformers model over a right-padded batch."""
    import torch

    T = batch.tokens.shape[1]
    mask = np.arange(T) < batch.lengths[:, None]
    with torch.no_grad():
        return peer(
            input_ids=torch.tensor(batch.tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            pixel_values=pixel_values(batch),
            **settings,
        )


def pixel_values(batch: Batch) -> Any:
    """The real images of a batch in the order of its rows, N3hw; None if there are none."""
    import torch

    real = [row[:n] for row, n in zip(batch.images, batch.image_counts, strict=True)]
    images = torch.tensor(np.concatenate(real)).permute(0, 3, 1, 2)
    return images if len(images) else None


def image_features(output: Any) -> np.ndarray:
    """The image features in the output of `run`, whose name depends on the version of transformers."""
    newer = getattr(output, 'image_outputs', None)
    features = output.image_hidden_states if newer is None else newer.pooler_output
    return np.concatenate([row.numpy().reshape(-1, row.shape[-1]) for row in features])


def greedy(peer: Any, batch: Batch, new: int) -> np.ndarray:
    """The transformers model's greedy answers [B, new]."""
    out = generate(peer, batch, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out.sequences[:, batch.tokens.shape[1] :].numpy()


def generate(peer: Any, batch: Batch, **options: Any) -> Any:
    """What the transformers model generates from a batch, which is padded on the left for it."""
    import torch

    tokens, mask = left_padded(batch)
    if (images := pixel_values(batch)) is not None:
        options['pixel_values'] = images
    with torch.no_grad():
        return peer.generate(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            return_dict_in_generate=True,
            **options,
        )


class Beams(NamedTuple):
    """The answers of beam search, one row each."""

    tokens: np.ndarray  # AT, padded
    sequence_scores: np.ndarray  # A
    scores: np.ndarray  # AT, of each token after all processors
    logprobs: np.ndarray  # AT, of each token before them


def beams(peer: Any, batch: Batch, pad: int, eos: Sequence[int], **settings: Any) -> Beams:
    """The transformers model's answers by beam search, with our settings."""
    import torch

    options = {name: value for name, value in settings.items() if name not in ('cfg', 'logprobs')}
    options |= dict(do_sample=False, eos_token_id=[*eos], pad_token_id=pad)
    out = generate(peer, batch, output_scores=True, output_logits=True, **options)

    def of_tokens(steps: Any) -> np.ndarray:
        return peer.compute_transition_scores(out.sequences, steps, out.beam_indices).numpy()

    log_p = [torch.log_softmax(logits, -1) for logits in out.logits]
    answers = out.sequences[:, batch.tokens.shape[1] :].numpy()
    return Beams(answers, out.sequences_scores.numpy(), of_tokens(out.scores), of_tokens(log_p))


def left_padded(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a batch and their attention mask, padded on the left, as transformers generates."""
    T = batch.tokens.shape[1]
    tokens, mask = np.zeros_like(batch.tokens), np.zeros_like(batch.tokens)
    for row, n in enumerate(batch.lengths):
        tokens[row, T - n :], mask[row, T - n :] = batch.tokens[row, :n], 1
    return tokens, mask
