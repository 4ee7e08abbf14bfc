"""The processor: converts prompts and images to a model's input arrays, and its ids back to text."""

import dataclasses
import html
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vipllava_jax.config import Config
from vipllava_jax.files import read_json
from vipllava_jax.inputs import chat_templates, processor_files
from vipllava_jax.inputs.arguments import read_conversations
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.inputs.chat_templates import ChatTemplate
from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.padding import pad_ids, pad_images
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
from vipllava_jax.messages import CheckpointError, printable


@dataclass(frozen=True, repr=False)
class Processor:
    """Converts prompts and images to a Batch, `processor(prompts, images)`, and ids to text."""

    folder: Path
    tokenizer: Tokenizer
    image_settings: ImageSettings
    image_id: int
    patch: int = 14  # pixels per side of a patch
    chat_template: ChatTemplate | None = None
    vocab_size: int | None = None  # rows of the model's embedding; None: no model yet

    @property
    def patches(self) -> int:
        """The number of placeholder ids per image, one for each of its features."""
        return (self.image_settings.side // self.patch) ** 2

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'Processor':
        """Loads the processor files of a folder, as transformers 4 or 5 or the authors' code writes them.

        Raises FileNotFoundError for a missing file, and CheckpointError for an invalid field.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {str(folder)!r}: expected the folder of a checkpoint')
        tokenizer = Tokenizer.load(folder)
        image_id = tokenizer.token_to_id(IMAGE_TOKEN)
        if image_id is None:
            raise CheckpointError(
                f'{folder}: the tokenizer has no token {IMAGE_TOKEN}: '
                'copy the tokenizer files of a ViP-LLaVA checkpoint there'
            )
        processor_config = read_json(folder / 'processor_config.json', optional=True)
        model_config = read_json(folder / 'config.json', optional=True)
        image_settings = processor_files.read_image_settings(folder, processor_config, model_config)
        patch = processor_files.read_patch_size(folder, processor_config, model_config, image_settings.side)
        chat_template = chat_templates.find_chat_template(folder, tokenizer.template_variables)
        return cls(folder, tokenizer, image_settings, image_id, patch, chat_template)

    def for_model(self, cfg: Config) -> 'Processor':
        """This processor for a model: it refuses tokens that have no row in the model's embedding.

        Raises CheckpointError if the processor does not belong to the model: images of another size, another
        id of `<image>`, or special tokens without a row would give wrong answers or late errors.
        """
        vision, side = cfg.vision, self.image_settings.side
        if (side, self.patch) != (vision.image_size, vision.patch_size):
            raise CheckpointError(
                f'{self.folder}: the processor makes images of {side} pixels in patches of {self.patch} '
                '(preprocessor_config.json, processor_config.json), but the vision tower takes images of '
                f'{vision.image_size} in patches of {vision.patch_size} (config.json): '
                'use the files of one model'
            )
        if self.image_id != cfg.image_token:
            raise CheckpointError(
                f'{self.folder}: {IMAGE_TOKEN} has the id {self.image_id} in the tokenizer, but '
                f'image_token_index is {cfg.image_token} in config.json: use the files of one model'
            )
        tokenizer, vocab_size = self.tokenizer, cfg.text.vocab
        if vocab_size == cfg.image_token:
            # The authors' checkpoints have no rows for <image>, whose embedding is never used, and for the
            # padding token after it.
            tokenizer = tokenizer.with_pad(cfg.pad if tokenizer.pad >= vocab_size else tokenizer.pad)
        processor = dataclasses.replace(self, tokenizer=tokenizer, vocab_size=vocab_size)
        required = [id for id in (tokenizer.bos, tokenizer.eos, tokenizer.pad) if id is not None]
        for id in (*required, *([self.image_id] if self.image_id > vocab_size else [])):
            if id >= vocab_size:
                raise CheckpointError(f'{self.folder}: {processor._no_embedding(id)}')
        return processor

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises ValueError, naming the token, for an id without a row in the model's embedding."""
        for id in ids:
            if self.vocab_size is not None and id >= self.vocab_size and id != self.image_id:
                raise ValueError(self._no_embedding(id))

    def _no_embedding(self, id: int) -> str:
        token = printable(self.tokenizer.backend.id_to_token(id) or '', 80)
        return (
            f'the token {token} has the id {id}, but the embedding of the model has {self.vocab_size} rows: '
            'use the tokenizer and the weights of one model'
        )

    def __call__(
        self,
        prompts: str | Sequence[Any],
        images: Any = None,
        *,
        template: str = DEFAULT_TEMPLATE,
        fit: Fit | None = None,
    ) -> Batch:
        """One prompt, or a list of B prompts, and their images -> a Batch of B rows.

        A prompt is a string, a list of Turns, or a list of messages as in OpenAI's chat API (see
        `chat_messages`). The images of a prompt are None, an image, or a list of images. An image is a path,
        the bytes of a file, a PIL image, or an array hw, hw3 or hw4 of uint8. For a list of prompts, `images`
        is a list of B of these.

        Raises ValueError, naming the row, if images do not fit the text or cannot be read. Warns of marks
        that cropping would cut off; `fit='pad'` and `fit='squash'` keep the whole image.
        """
        check_template(template, self.chat_template)
        check_fit(fit)
        ids: list[list[int]] = []
        pictures: list[list[np.ndarray]] = []
        conversations = read_conversations(prompts, images)
        for row, (turns, sources) in enumerate(conversations):
            try:
                ids.append(self.encode(turns, len(sources), template))
            except ValueError as error:
                raise ValueError(f'row {row}: {error}') from None
        for row, (_, sources) in enumerate(conversations):
            pictures.append([])
            for i, source in enumerate(sources):  # no comprehension: a warning names the caller's line
                pictures[row].append(self.pixels(source, f'image {i} of row {row}', fit))
        return self.collate(ids, pictures)

    def collate(self, ids: Sequence[Sequence[int]], pictures: Sequence[Sequence[np.ndarray]]) -> Batch:
        """The ids of B rows and the pictures hw3 of each, as `pixels` returns them -> a Batch of B rows."""
        lengths = np.array([len(row) for row in ids], np.int32)
        tokens = pad_ids(ids, bucket(lengths.max()), self.tokenizer.pad)
        images, counts = pad_images(pictures, self.image_settings.side, np.float32)
        return Batch(tokens, lengths, images, counts)

    def encode(self, turns: Sequence[Turn], image_count: int, template: str = DEFAULT_TEMPLATE) -> list[int]:
        """A conversation with this number of images -> ids T, with a placeholder for each image feature."""
        ids = self.tokenizer.encode(render(template, turns, image_count, self.chat_template))
        self.check_ids(ids)
        return [copy for id in ids for copy in [id] * (self.patches if id == self.image_id else 1)]

    def pixels(self, source: ImageSource, name: str = 'the image', fit: Fit | None = None) -> np.ndarray:
        """An image -> hw3 float32, as the model sees it; errors and warnings call it by its name."""
        image = open_image(source, name)
        for mark in marks_cut_off(image, self.image_settings, fit):
            warnings.warn(
                f"the crop cuts off the mark {mark} on {name}: fit='pad' (--fit pad) keeps the whole image",
                stacklevel=3,
            )
        return pixels(image, self.image_settings, fit)

    def image(self, batch: Batch, row: int = 0, index: int = 0) -> Image.Image:
        """An image of a batch as the model sees it: cropped, padded or squashed to h x w."""
        if not 0 <= index < batch.image_counts[row]:
            raise IndexError(f'row {row} has {batch.image_counts[row]} images, so there is no image {index}')
        return Image.fromarray(self.image_settings.denormalize(np.asarray(batch.images[row, index])))

    def decode(self, output: Any) -> Any:
        """Ids T -> a string; ids BT -> B strings; a Generation -> a string for each of its answers.

        The texts of a Generation have no end id, and no stop string unless its `keep_stop` says so.
        """
        if hasattr(output, 'truncate'):
            ends = {*output.eos}
            rows = [[id for id in answer.tokens.tolist() if id not in ends] for answer in output]
            return [output.truncate(self.tokenizer.decode_untrimmed(row)) for row in rows]
        if hasattr(output, 'finish_reason'):
            raise TypeError(
                'this is one answer of a Generation, which does not know its stop strings: decode the '
                'Generation out, or a part of it such as out[2:3]; decode(out) has one text for each answer'
            )
        ids = np.asarray(output)
        return [self.tokenizer.decode(row) for row in ids] if ids.ndim == 2 else self.tokenizer.decode(ids)

    def text_stream(self) -> TextStream:
        """A decoder of one row's ids as they arrive: `push(ids)` returns complete text, `end()` the rest."""
        return TextStream(self.tokenizer)

    def stop_strings(self, template: str = DEFAULT_TEMPLATE) -> tuple[str, ...]:
        """The strings that end an answer in this template, besides the eos token."""
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
        fields = read_json(target / 'processor_config.json', optional=True)
        if 'image_processor' not in fields and not (target / 'preprocessor_config.json').is_file():
            image_fields = json.dumps(self.image_settings.to_fields(), indent=2)
            (target / 'preprocessor_config.json').write_text(image_fields)
        if not fields.get('patch_size'):
            extra = {'num_additional_image_tokens': 1, 'vision_feature_select_strategy': 'default'}
            fields = {**extra, **fields, 'image_token': IMAGE_TOKEN, 'patch_size': self.patch}
            (target / 'processor_config.json').write_text(json.dumps(fields, indent=2))

    def __repr__(self) -> str:
        return f'Processor({", ".join(f"{name}={text}" for name, text in self._description().items())})'

    def _repr_html_(self) -> str:
        """The repr as a table, for a notebook."""
        cells = (f'<tr><th>{n}</th><td>{html.escape(t)}</td></tr>' for n, t in self._description().items())
        return f'<table>{"".join(cells)}</table>'

    def _description(self) -> dict[str, str]:
        side = self.image_settings.side
        return {
            'folder': printable(repr(str(self.folder)), 200),
            'images': f'{side}x{side}, {self.image_settings.fit}, {self.patches} tokens each',
            'tokens': str(self.tokenizer.backend.get_vocab_size()),
            'chat_template': 'none' if self.chat_template is None else 'yes',
        }
