"""Beginnings of prompts that are computed once for many questions."""

import itertools
from collections.abc import Sequence

import numpy as np

from vipllava_jax.answering.prompts import image_list
from vipllava_jax.answering.questions import check_model
from vipllava_jax.config import Config
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.prefix import Prefix, common_length, compute_prefix, image_spans
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, Turn

WORTH_SHARING = 64  # ids; computing fewer again costs less than another program
CONTINUATIONS = ('a', ' a', '1', '.', '\n', '…')  # what may follow a text, and change its last ids


def prefix(
    model: Model,
    text: str = '',
    image: ImageSource | Sequence[ImageSource] | None = None,
    *,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
) -> Prefix:
    """Computes the beginning of all prompts about an image, or several, whose question begins with `text`.

    `vj.generate(model.params, batch, cfg=model.cfg, prefix=…)` then computes only what follows it. The prefix
    ends where the ids of such prompts may differ, so the last word of `text` may be left out. `image`,
    `template` and `fit` are those of the prompts, which hold the same pixels; marks are drawn before. The
    keys and values stay on the device: 0.5 MiB per token for the 7B.

    Raises ValueError if the model has no processor or nothing is shared, and the errors of the processor.
    """
    check_model(model)
    given = image_list(image)
    batch = model.processor(text + CONTINUATIONS[0], given, template=template, fit=fit)
    prompts = [[Turn('user', text + more)] for more in CONTINUATIONS]
    ids = common_prefix([model.processor.encode(turns, len(given), template) for turns in prompts])
    if not ids:
        raise ValueError(f'prompts in the template {template} have no beginning in common')
    if len(ids) >= (context := model.cfg.text.context):
        raise ValueError(
            f'text and images have {len(ids)} tokens, which leaves no room for a question in the context of '
            f'{context}: shorten them'
        )
    return compute_prefix(model.params, np.array(ids), batch.images[0, : len(given)], cfg=model.cfg)


def shared_prefix(model: Model, batch: Batch) -> Prefix | None:
    """The beginning that all rows of a batch have in common, computed; None if it would not pay.

    Rows that begin with the same pixels and ids have it computed once instead of in each row.
    """
    shared = shared_beginning(batch, model.cfg)
    return shared and compute_prefix(model.params, *shared, cfg=model.cfg)


def shared_beginning(batch: Batch, cfg: Config) -> tuple[np.ndarray, np.ndarray] | None:
    """The first ids P that all rows of a batch have in common, and the images Ihw3 among them; or None."""
    if len(batch.tokens) < 2:
        return None
    ids, images = batch.tokens[0, : batch.lengths[0]], batch.images[0, : batch.image_counts[0]]
    spans = image_spans(ids, cfg)
    length = common_length(ids, images, spans, batch)
    if length < WORTH_SHARING:
        return None
    return ids[:length], images[: int((spans[:, 1] <= length).sum())]


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest list of ids with which all rows begin."""
    columns = zip(*rows, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len({*column}) == 1, columns)]
