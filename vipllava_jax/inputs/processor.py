"""The processor: converts prompts and images to a model's input arrays, and its ids back to text."""

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.files import read_json
from vipllava_jax.inputs import chat_templates, processor_files
from vipllava_jax.inputs.chat_templates import ChatTemplate
from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.pixels import Fit, ImageSettings, check_fit, marks_cut_off, pixels
from vipllava_jax.inputs.processor_files import PROCESSOR_FILES
from vipllava_jax.inputs.prompts import (
    DEFAULT_TEMPLATE,
    IMAGE_TOKEN,
    Turn,
    check_template,
    render,
    stop_strings,
)
from vipllava_jax.inputs.tokenizer import TextStream, Tokenizer
from vipllava_jax.messages import CheckpointError, brief, printable


class Batch(NamedTuple):
    """A model's input arrays: each row's tokens and, in the order of its placeholders, its images."""

    tokens: np.ndarray  # BT int32, padded on the right
    lengths: np.ndarray  # B int32
    images: np.ndarray  # BIhw3 float32, I the most images of a row; zeros where a row has fewer
    image_counts: np.ndarray  # B int32


def bucket(length: int) -> int:
    """The smallest positive multiple of 128 that is at least `length`: few shapes need few compilations."""
    return max(-(-length // 128), 1) * 128


@dataclass(frozen=True)
class Processor:
    """`processor(prompts, images)` -> Batch; `decode` and `text_stream` turn ids into text."""

    folder: Path
    tokenizer: Tokenizer
    image_settings: ImageSettings
    image_id: int
    patch: int = 14  # pixels per side of a patch
    chat_template: ChatTemplate | None = None
    vocab_size: int | None = None  # rows of the model's embedding, once that is known

    @property
    def patches(self) -> int:
        """The number of placeholders of an image, one for each of its features."""
        return (self.image_settings.side // self.patch) ** 2

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'Processor':
        """Loads a processor from the files of a folder, as transformers 4 or 5 or the authors write them."""
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {str(folder)!r}: expected that of a checkpoint')
        tokenizer = Tokenizer.load(folder)
        image_id = tokenizer.token_to_id(IMAGE_TOKEN)
        if image_id is None:
            raise ValueError(
                f'the tokenizer in {folder} has no {IMAGE_TOKEN}: copy that of a ViP-LLaVA checkpoint there'
            )
        own = read_json(folder / 'processor_config.json', optional=True)
        config = read_json(folder / 'config.json', optional=True)
        settings = processor_files.settings(folder, own, config)
        patch = processor_files.patch_size(folder, own, config, settings.side)
        chat = chat_templates.find(folder, tokenizer.template_variables)
        return cls(folder, tokenizer, settings, image_id, patch, chat)

    def for_model(self, cfg: Config) -> 'Processor':
        """This processor for a model: it will refuse tokens without a row in the model's embedding.

        Raises CheckpointError if the processor does not belong to the model: pictures of another size,
        another id of `<image>`, or special tokens without a row would give wrong answers or late errors.
        """
        vision = cfg.vision
        if (self.image_settings.side, self.patch) != (vision.image_size, vision.patch_size):
            raise CheckpointError(
                f'{self.folder}: the processor makes pictures of {self.image_settings.side} pixels in '
                f'patches of {self.patch} (preprocessor_config.json, processor_config.json), but the vision '
                f'tower takes {vision.image_size} in patches of {vision.patch_size} (config.json): '
                'get both of one model'
            )
        if self.image_id != cfg.image_token:
            raise CheckpointError(
                f'{self.folder}: {IMAGE_TOKEN} has the id {self.image_id} in the tokenizer, but '
                f'image_token_index is {cfg.image_token} in config.json: get both of one model'
            )
        tokenizer, rows = self.tokenizer, cfg.text.vocab
        if rows == cfg.image_token:
            # The authors' checkpoints have no rows for <image>, whose embedding is never used, and for the
            # padding token after it.
            tokenizer = tokenizer.with_pad(cfg.pad if tokenizer.pad >= rows else tokenizer.pad)
        fitted = dataclasses.replace(self, tokenizer=tokenizer, vocab_size=rows)
        own = [id for id in (tokenizer.bos, tokenizer.eos, tokenizer.pad) if id is not None]
        for id in (*own, *([self.image_id] if self.image_id > rows else [])):
            if id >= rows:
                raise CheckpointError(f'{self.folder}: {fitted._missing(id)}')
        return fitted

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises ValueError, naming the token, for an id without a row in the model's embedding."""
        for id in ids:
            if self.vocab_size is not None and id >= self.vocab_size and id != self.image_id:
                raise ValueError(self._missing(id))

    def _missing(self, id: int) -> str:
        token = printable(self.tokenizer.backend.id_to_token(id) or '', 80)
        return (
            f'the token {token} has the id {id}, but the embedding of the model has {self.vocab_size} rows: '
            'get the tokenizer and the weights of one model'
        )

    def __call__(
        self,
        prompts: str | Sequence[Any],
        images: Any = None,
        *,
        template: str = DEFAULT_TEMPLATE,
        fit: Fit | None = None,
    ) -> Batch:
        """Prompts, each a text or a list of Turns, and the images of each -> Batch.

        The images of one prompt are None, an image, or a list of images; those of a list of prompts are a
        list with one of these for each. ValueError names the row whose images do not fit its text. Warns of
        a mark that cropping would cut off; `fit='pad'` or 'squash' keeps the whole picture.
        """
        check_template(template, self.chat_template)
        check_fit(fit)
        one = _is_prompt(prompts)
        conversations = [_turns(prompt) for prompt in ([prompts] if one else _list(prompts))]
        sources = [_row(images)] if one else _rows(images, len(conversations))
        ids: list[list[int]] = []
        pictures: list[list[np.ndarray]] = []
        for row, (turns, own) in enumerate(zip(conversations, sources, strict=True)):
            try:
                ids.append(self.encode(turns, len(own), template))
            except ValueError as error:
                raise ValueError(f'row {row}: {error}') from None
            pictures.append([])
            for i, source in enumerate(own):  # not a comprehension, so that a warning names the caller's line
                pictures[row].append(self._pixels(source, f'image {i} of row {row}', fit))
        return self.collate(ids, pictures)

    def collate(self, ids: Sequence[Sequence[int]], pictures: Sequence[Sequence[np.ndarray]]) -> Batch:
        """The ids of each row, and its pictures hw3 as returned by `pixels` -> Batch."""
        lengths = np.array([len(row) for row in ids], np.int32)
        counts = np.array([len(row) for row in pictures], np.int32)
        tokens = np.full((len(ids), bucket(lengths.max())), self.tokenizer.pad, np.int32)
        side = self.image_settings.side
        images = np.zeros((len(ids), counts.max(), side, side, 3), np.float32)
        for b, row in enumerate(ids):
            tokens[b, : len(row)] = row
            for i, picture in enumerate(pictures[b]):
                images[b, i] = picture
        return Batch(tokens, lengths, images, counts)

    def encode(self, turns: Sequence[Turn], images: int, template: str = DEFAULT_TEMPLATE) -> list[int]:
        """A conversation and the number of its images -> ids, with a placeholder for each image feature."""
        ids = self.tokenizer.encode(render(template, turns, images, self.chat_template))
        self.check_ids(ids)
        return [copy for id in ids for copy in [id] * (self.patches if id == self.image_id else 1)]

    def _pixels(self, source: ImageSource, name: str, fit: Fit | None) -> np.ndarray:
        image = open_image(source, name)
        for mark in marks_cut_off(image, self.image_settings, fit):
            warnings.warn(
                f"the crop cuts off the mark {mark} on {name}: fit='pad' (--fit pad) keeps the whole picture",
                stacklevel=3,
            )
        return pixels(image, self.image_settings, fit)

    def decode(self, output: Any) -> Any:
        """Ids T -> a text; ids BT, or an object with `tokens` BT and `lengths` B -> a list of texts."""
        if hasattr(output, 'tokens'):
            rows = zip(np.asarray(output.tokens), np.asarray(output.lengths), strict=True)
            return [self.tokenizer.decode(ids[:length]) for ids, length in rows]
        ids = np.asarray(output)
        return [self.tokenizer.decode(row) for row in ids] if ids.ndim == 2 else self.tokenizer.decode(ids)

    def text_stream(self) -> TextStream:
        """A decoder of one row's ids as they arrive: `push(ids)` returns complete text, `end()` the rest."""
        return TextStream(self.tokenizer)

    def stop_strings(self, template: str = DEFAULT_TEMPLATE) -> tuple[str, ...]:
        """The texts that end an answer in this template, besides the eos token."""
        return stop_strings(template, self.chat_template)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files that `load` needs, except config.json, to a folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in PROCESSOR_FILES:
            if (self.folder / name).is_file() and self.folder.resolve() != target.resolve():
                shutil.copyfile(self.folder / name, target / name)
        if not (target / 'tokenizer.json').is_file():
            self.tokenizer.backend.save(str(target / 'tokenizer.json'))
        own = read_json(target / 'processor_config.json', optional=True)
        if 'image_processor' not in own and not (target / 'preprocessor_config.json').is_file():
            (target / 'preprocessor_config.json').write_text(
                json.dumps(self.image_settings.to_fields(), indent=2)
            )
        if not own.get('patch_size'):
            extra = {'num_additional_image_tokens': 1, 'vision_feature_select_strategy': 'default'}
            fields = {**extra, **own, 'image_token': IMAGE_TOKEN, 'patch_size': self.patch}
            (target / 'processor_config.json').write_text(json.dumps(fields, indent=2))


def _is_prompt(value: Any) -> bool:
    """Whether a value is one prompt: a text, or a list of Turns."""
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, Turn) for turn in value)
    )


def _turns(prompt: Any) -> Sequence[Turn]:
    if not _is_prompt(prompt):
        raise ValueError(f'a prompt is a text or a list of Turns, found {brief(prompt)}')
    return [Turn('user', prompt)] if isinstance(prompt, str) else prompt


def _list(prompts: Any) -> Sequence[Any]:
    if not isinstance(prompts, (list, tuple)) or isinstance(prompts, Turn) or not prompts:
        raise ValueError(f'expected a prompt or a list of prompts, found {brief(prompts)}')
    return prompts


def _rows(images: Any, count: int) -> list[list[ImageSource]]:
    """The images of each of a list of prompts."""
    if images is None:
        return [[] for _ in range(count)]
    if not isinstance(images, (list, tuple)) or len(images) != count:
        found = f'a list of {len(images)}' if isinstance(images, (list, tuple)) else 'one'
        raise ValueError(
            f'images of a list of {count} prompts are a list as long (images, lists, None); found {found}'
        )
    return [_row(entry) for entry in images]


def _row(images: Any) -> list[ImageSource]:
    """The images of one prompt."""
    row = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    if any(image is None or isinstance(image, (list, tuple)) for image in row):
        raise ValueError(
            'the images of one prompt are an image, a list of images, or None; found a list or None in a list'
        )
    return row
