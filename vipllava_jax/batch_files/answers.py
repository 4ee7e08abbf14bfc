"""Answers rows in Python, as `vipllava batch` answers those of a file."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax.answering.questions import check_model
from vipllava_jax.batch_files.answering import rounds
from vipllava_jax.batch_files.names import Names
from vipllava_jax.batch_files.questions import QuestionMaker
from vipllava_jax.batch_files.row_settings import check_batch_settings
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.settings import GenerationSettings, with_overrides
from vipllava_jax.messages import brief

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine


def answers(
    model: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    images: str | os.PathLike[str] | None = '.',
    settings: GenerationSettings | None = None,
    ordered: bool = False,
) -> Iterator[dict[str, Any]]:
    """Answers rows such as {"image": "a.jpg", "prompt": "What is this?"}, many at a time.

    Rows are dicts as in the files of `vipllava batch`; a picture may also be bytes, a PIL image or an array.
    Yields {"id", "answer", "finish_reason", "prompt_tokens", "new_tokens"}, with a list of "answers" for
    several samples, or {"id", "error"} for a row that cannot be answered; the other keys of a row are under
    "row". They come as they are finished or, with `ordered`, in the order of the rows, of which few are read
    ahead. Paths of pictures are relative to the folder `images`; with None, for rows of strangers, rows must
    not name paths. `settings` default to those of the model, for one answer. An open Engine in place of the
    model is left open. TypeError, ValueError and FileNotFoundError name an invalid argument at once.
    """
    if not (is_engine := hasattr(model, 'submit')):
        check_model(model)
    if isinstance(rows, str | bytes | os.PathLike | Mapping) or not isinstance(rows, Iterable):
        raise TypeError(
            f'rows is {brief(rows)}: expected dicts, such as (json.loads(line) for line in open(path))'
        )
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f'no folder of pictures {os.fspath(images)!r}: images is None for none')
    if settings is None:
        defaults = model.model.settings if is_engine else model.settings
        settings = dataclasses.replace(defaults, num_return_sequences=1)
    settings = with_overrides(settings, {})
    check_batch_settings(settings)
    loaded = model.model if is_engine else model
    make = QuestionMaker(None if images is None else Path(images), settings, loaded)
    return _answers(model, is_engine, rows, make, ordered)


def _answers(
    model: Any, is_engine: bool, rows: Iterable[Any], make: QuestionMaker, ordered: bool
) -> Iterator[dict[str, Any]]:
    names = Names()
    questions = (make(names.of_fields(row, number)) for number, row in enumerate(rows, 1))
    with contextlib.nullcontext(model) if is_engine else _open(model) as engine:
        for lines in rounds(engine, questions, ordered):
            yield from lines


def _open(model: Model) -> 'Engine':
    from vipllava_jax.engine.engine import Engine  # imports jax

    return Engine(model)
