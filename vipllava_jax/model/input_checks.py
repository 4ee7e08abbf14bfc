"""Checks of a model's input arrays, before anything runs."""

import jax
import numpy as np
from jax.typing import ArrayLike

from vipllava_jax.config import Config


def check_inputs(
    tokens: ArrayLike,
    images: ArrayLike | None,
    image_counts: ArrayLike | None,
    cfg: Config,
    lengths: ArrayLike | None = None,
) -> None:
    """Raises ValueError if shapes do not fit or, outside jit, if the values of a row do not.

    tokens BT, images BIhw3, image_counts B, lengths B. The message names the row, and the number found and
    the number expected of its images, placeholders or tokens, or the id that is outside the vocabulary.
    """
    check_shapes(tokens, images, image_counts, cfg, lengths)
    if any(isinstance(x, jax.core.Tracer) for x in (tokens, image_counts, lengths)):
        return  # under jit the values are not known
    ids = np.asarray(tokens)
    B, T = ids.shape
    max_images = 0 if images is None else np.shape(images)[1]
    counts = np.full(B, max_images) if image_counts is None else np.asarray(image_counts)
    check_placeholders(ids, counts, max_images, cfg)
    row_lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    for row, length in enumerate(row_lengths):
        if not 1 <= length <= T:
            raise ValueError(f'row {row} has a length of {length}, but must have 1 to {T} tokens')
    # Image features replace the embedding of the image token, and padding is never used.
    used = (ids != cfg.image_token) & (np.arange(T) < row_lengths[:, None])
    check_ids(ids, cfg, used if lengths is not None else used & (ids != cfg.pad))


def check_shapes(
    tokens: ArrayLike,
    images: ArrayLike | None,
    image_counts: ArrayLike | None,
    cfg: Config,
    lengths: ArrayLike | None = None,
    start: ArrayLike | None = None,
) -> None:
    """Raises ValueError if the shapes do not fit the config or each other; also under jit."""
    if np.ndim(tokens) != 2:
        raise ValueError(f'tokens have the shape {np.shape(tokens)}, but the model takes B×T')
    B, size = np.shape(tokens)[0], cfg.vision.image_size
    shape = (B, 0, size, size, 3) if images is None else np.shape(images)
    if len(shape) != 5 or shape[0] != B or shape[2:] != (size, size, 3):
        raise ValueError(f'images have the shape {shape}, but {B} rows of tokens take {B}×I×{size}×{size}×3')
    for name, values in (('image_counts', image_counts), ('lengths', lengths), ('start', start)):
        if values is not None and np.shape(values) != (B,):
            raise ValueError(f'{name} has the shape {np.shape(values)}, but {B} rows take ({B},)')


def check_placeholders(ids: np.ndarray, counts: np.ndarray, max_images: int, cfg: Config) -> None:
    """Raises ValueError for a row of ids BT whose placeholders do not match its image count.

    `counts` B are the images of each row, and `max_images` is the number that a row can have.
    """
    found, patches = (ids == cfg.image_token).sum(axis=1), cfg.vision.patches
    for row, count in enumerate(counts):
        if not 0 <= count <= max_images:
            raise ValueError(f'row {row} has an image_count of {count}, but images hold {max_images} per row')
        if found[row] != count * patches:
            raise ValueError(
                f'row {row} has {found[row]} image placeholders (id {cfg.image_token}), but needs '
                f'{count * patches} for its {count} × {patches} image patches'
            )


def check_ids(ids: np.ndarray, cfg: Config, used: np.ndarray) -> None:
    """Raises ValueError for the first of ids BT outside the embedding table, where `used` BT is True."""
    beyond = ((ids < 0) | (ids >= cfg.text.vocab)) & used
    if beyond.any():
        row, at = np.argwhere(beyond)[0]
        raise ValueError(
            f'row {row} has the token id {ids[row, at]} at position {at}, but the embedding of the model has '
            f'{cfg.text.vocab} rows: ids go from 0 to {cfg.text.vocab - 1}'
        )
