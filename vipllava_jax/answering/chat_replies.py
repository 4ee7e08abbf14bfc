"""Replies to a conversation that goes on: only what follows the longest known beginning is computed."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from vipllava_jax.answering.chat_turns import draw_marks
from vipllava_jax.answering.prompts import single_prompt
from vipllava_jax.answering.replies import Reply, replies, with_template_stops
from vipllava_jax.generation.decoding import TokenStream, compile_for
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.prefix import Prefix
from vipllava_jax.generation.setting_checks import later_seed
from vipllava_jax.generation.settings import DEFAULT_NEW_TOKENS, GenerationSettings, with_overrides
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import Turn

ENOUGH = 16  # tokens; a context that leaves an answer less room than this is full


class ContextFull(ValueError):
    """A conversation leaves no room for an answer. Nothing was computed, and the chat is unchanged."""


class ChatReplies:
    """Prepares replies, and keeps what was computed for the last one; any conversation may follow another."""

    def __init__(self, model: Model, template: str, fit: Fit | None) -> None:
        self.model, self.template, self.fit = model, template, fit
        self.cached_tokens = 0  # how many tokens of the newest prompt are not computed again
        self.compile: Callable[[], None] = do_nothing  # what `Chat.compile` does
        self._stream: TokenStream | None = None  # that of the last reply, until it is settled
        self._prefix: Prefix | None = None
        self._drawn: list[tuple[Image.Image, Sequence[str], np.ndarray]] = []  # images, marks and pixels

    def encode(self, turns: Sequence[Turn], image_count: int) -> list[int]:
        """The ids of a conversation; raises ValueError as the processor does."""
        ids: list[int] = self.model.processor.encode(turns, image_count, self.template)
        return ids

    def reply(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image],
        marks: Sequence[Sequence[str]],
        settings: GenerationSettings,
    ) -> Reply:
        """The reply to a conversation with images, and the marks of each; nothing runs until it is read.

        Raises ContextFull if there is no room for it, and ValueError for invalid arguments.
        """
        ids = self.encode(turns, len(images))
        settings = limited(settings, len(ids), self.model.cfg.text.context)
        batch = self.model.processor.collate([ids], [self._pixels(images, marks)])
        settings = with_template_stops(settings, self.model.processor, self.template)
        prefix = self._known_beginning(batch)
        with single_prompt():
            (reply,) = replies(self.model, batch, settings, prefix)
        params, cfg, processor, _ = self.model
        given = {'settings': settings, 'processor': processor, 'prefix': prefix}
        self.compile = partial(compile_for, params, batch, cfg=cfg, **given)
        self.cached_tokens = 0 if prefix is None else len(prefix)
        return reply

    def keep(self, reply: Reply) -> None:
        """Keeps what is being computed for a reply that has begun; not of beams, which share their cache."""
        self.compile = do_nothing  # and does not keep the memory of the known beginning
        if isinstance(reply.stream, TokenStream):
            self._stream = reply.stream

    def settle(self) -> None:
        """Ends the kept reply: what it has computed replaces what was known, whose memory becomes free."""
        if self._stream is not None:
            # Where an interrupt came while the state was handed on, its buffers are gone.
            with contextlib.suppress(RuntimeError):
                self._prefix = self._stream.computed()
            self._stream = None

    def _known_beginning(self, batch: Batch) -> Prefix | None:
        """The longest beginning of a batch of one row that is computed."""
        self.settle()
        length = 0 if self._prefix is None else self._prefix.common_length(batch)
        return self._prefix.cut(length) if self._prefix and length else None

    def _pixels(self, images: Sequence[Image.Image], marks: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The pixels hw3 of each image with its marks; those of the last conversation are kept."""
        self._drawn = [
            (image, drawn, self._pixels_of(image, drawn, f'image {number}'))
            for number, (image, drawn) in enumerate(zip(images, marks, strict=True), 1)
        ]
        return [pixels for _, _, pixels in self._drawn]

    def _pixels_of(self, image: Image.Image, marks: Sequence[str], name: str) -> np.ndarray:
        for known, drawn, pixels in self._drawn:
            if known is image and drawn == marks:
                return pixels
        return self.model.processor.pixels(draw_marks(image, marks), name, self.fit)


def do_nothing() -> None:
    """Compiles nothing, because no answer is about to begin."""


def limited(settings: GenerationSettings, length: int, context: int) -> GenerationSettings:
    """The settings with no more new tokens than the context leaves to a prompt of this length.

    Raises ContextFull if those are too few for an answer.
    """
    wanted = int(settings.per_row('max_new_tokens', 1, none=DEFAULT_NEW_TOKENS)[0])
    smallest = int(settings.per_row('min_new_tokens', 1, none=0)[0])
    left, needed = max(context - length, 0), max(min(ENOUGH, wanted), smallest)
    if left < needed:
        raise ContextFull(
            f'the context is full: with this question, the conversation has {length} of {context} tokens, '
            f'which leaves {left} to the answer, and it needs {needed}: ask something shorter, or with fewer '
            'images, undo() earlier questions, or begin another Chat'
        )
    return with_overrides(settings, {'max_new_tokens': min(wanted, left)})


def with_retries(settings: GenerationSettings, retries: int) -> GenerationSettings:
    """The settings with another seed for each retry, if they have one; without, each answer draws its own."""
    if settings.seed is None or not retries:
        return settings
    seed = settings.seed
    later = later_seed(seed, retries) if isinstance(seed, int) else [later_seed(n, retries) for n in seed]
    return dataclasses.replace(settings, seed=later)
