"""The processor: prompts and images to the arrays a model reads, and its ids back to text."""

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vipllava_jax.inputs.images import Fit, Settings, Source, check_fit, cut_off, open_image, pixels
from vipllava_jax.inputs.prompts import DEFAULT, IMAGE, ChatTemplate, Turn, check, render, stops
from vipllava_jax.inputs.tokenizer import Stream, Tokenizer, read_fields

FILES = (
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'preprocessor_config.json',
    'processor_config.json',
    'chat_template.json',
    'chat_template.jinja',
)
BUCKET = 128
PATCH = 14  # pixels; of every published checkpoint


class Batch(NamedTuple):
    """What a model reads: each row's tokens and, in the order of their placeholders, its images; arrays only."""

    tokens: np.ndarray  # BT int32, padded on the right
    lengths: np.ndarray  # B int32
    images: np.ndarray  # BIhw3 float32, I the most images of a row; zeros where a row has fewer
    image_counts: np.ndarray  # B int32


def bucket(length: int) -> int:
    """The smallest multiple of 128, and at least one, that holds `length` tokens: few shapes to compile for."""
    return max(-(-length // BUCKET), 1) * BUCKET


@dataclass(frozen=True)
class Processor:
    """`processor(prompts, images)` -> Batch; `decode` and `stream` turn ids into text."""

    folder: Path
    tokenizer: Tokenizer
    settings: Settings
    image_id: int
    patches: int  # the placeholders of an image: what the model makes of it, whatever the files say
    chat: ChatTemplate | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'Processor':
        """From the tokenizer and processor files of a folder, as transformers 4 or 5 writes them."""
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {str(folder)!r}: expected a checkpoint folder')
        tokenizer = Tokenizer.load(folder)
        image_id = tokenizer.id_of(IMAGE)
        if image_id is None:
            raise ValueError(
                f'the tokenizer in {folder} has no {IMAGE}: use the one of a ViP-LLaVA or LLaVA checkpoint'
            )
        own = read_fields(folder / 'processor_config.json')
        name = 'processor_config.json' if 'image_processor' in own else 'preprocessor_config.json'
        fields = own.get('image_processor') or read_fields(folder / name)
        if not fields:
            raise FileNotFoundError(
                f"no preprocessor_config.json in {folder}: copy it there from the checkpoint's repository"
            )
        settings = Settings.read(fields, str(folder / name))
        vision = read_fields(folder / 'config.json').get('vision_config') or {}
        patch = own.get('patch_size') or vision.get('patch_size') or PATCH
        return cls(
            folder, tokenizer, settings, image_id, (settings.side // patch) ** 2, _chat(folder, tokenizer)
        )

    def __call__(
        self,
        prompts: str | Sequence[Any],
        images: Any = None,
        *,
        template: str = DEFAULT,
        fit: Fit | None = None,
    ) -> Batch:
        """Prompts, each a text or a list of Turns, and the images of each -> Batch.

        One prompt takes no image, one, or a list; a list of prompts takes a list with, for each prompt, any of
        these. ValueError names the row whose images do not fit its text. A mark that the fit would cut off is
        a warning.
        """
        check(template, self.chat)
        check_fit(fit)
        conversations = _conversations(prompts)
        sources = _sources(prompts, images, len(conversations))
        rows = [
            self._tokens(row, *pair, template)
            for row, pair in enumerate(zip(conversations, sources, strict=True))
        ]
        lengths = np.array([len(ids) for ids in rows], np.int32)
        tokens = np.full((len(rows), bucket(int(lengths.max()))), self.tokenizer.pad, np.int32)
        counts = np.array([len(row) for row in sources], np.int32)
        side = self.settings.side
        stacked = np.zeros((len(rows), int(counts.max()), side, side, 3), np.float32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
            for i, source in enumerate(sources[row]):
                stacked[row, i] = self._pixels(source, f'image {i} of row {row}', fit)
        return Batch(tokens, lengths, stacked, counts)

    def _tokens(self, row: int, turns: Sequence[Turn], images: Sequence[Source], template: str) -> list[int]:
        try:
            ids = self.tokenizer.encode(render(template, turns, len(images), self.chat))
        except ValueError as error:
            raise ValueError(f'row {row}: {error}') from None
        return [copy for id in ids for copy in [id] * (self.patches if id == self.image_id else 1)]

    def _pixels(self, source: Source, name: str, fit: Fit | None) -> np.ndarray:
        image = open_image(source, name)
        for mark in cut_off(image, self.settings, fit):
            warnings.warn(
                f"the crop to a square cuts off the mark {mark} on {name}: fit='pad' (--fit pad) keeps all of it",
                stacklevel=3,
            )
        return pixels(image, self.settings, fit)

    def decode(self, output: Any) -> Any:
        """Ids T -> a text; ids BT, or something with `tokens` BT and `lengths` B -> a list of texts."""
        if hasattr(output, 'tokens'):
            rows = zip(np.asarray(output.tokens), np.asarray(output.lengths), strict=True)
            return [self.tokenizer.decode(ids[:length].tolist()) for ids, length in rows]
        ids = np.asarray(output)
        if ids.ndim == 2:
            return [self.tokenizer.decode(row.tolist()) for row in ids]
        return self.tokenizer.decode(ids.tolist())

    def stream(self) -> Stream:
        """A decoder of one row's ids as they come: `push(ids)` gives complete text, `end()` the rest."""
        return Stream(self.tokenizer)

    def stops(self, template: str = DEFAULT) -> tuple[str, ...]:
        """The texts, besides the eos token, that end an answer in this template."""
        return stops(template, self.chat)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copies its files to a folder, which then needs nothing else, nor sentencepiece, to be loaded."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self.folder / name).is_file() and not (target / name).exists():
                shutil.copyfile(self.folder / name, target / name)
        if not (target / 'tokenizer.json').exists():
            self.tokenizer.core.save(str(target / 'tokenizer.json'))


def _chat(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template, from whichever of the files that have held it over the years."""
    path = folder / 'chat_template.jinja'
    source: Any = path.read_text('utf-8') if path.is_file() else None
    for name in ('chat_template.json', 'processor_config.json', 'tokenizer_config.json'):
        source = source or read_fields(folder / name).get('chat_template')
    if isinstance(source, list):
        source = {entry['name']: entry['template'] for entry in source}.get('default')
    tokens = {f'{name}_token': token for name, token in tokenizer.tokens.items()}
    return ChatTemplate(source, tokens) if source else None


def _conversations(prompts: str | Sequence[Any]) -> list[Sequence[Turn]]:
    """One prompt or several, each a text or Turns -> a list of Turns each."""
    if isinstance(prompts, str):
        return [[Turn('user', prompts)]]
    if not isinstance(prompts, (list, tuple)) or isinstance(prompts, Turn) or not prompts:
        raise ValueError(f'expected a text, Turns, or a list of either as prompts, found {prompts!r}')
    if all(isinstance(turn, Turn) for turn in prompts):
        return [prompts]
    return [turns for prompt in prompts for turns in _conversations(_prompt(prompt))]


def _prompt(prompt: Any) -> Any:
    if isinstance(prompt, str) or (
        isinstance(prompt, (list, tuple)) and prompt and all(isinstance(turn, Turn) for turn in prompt)
    ):
        return prompt
    raise ValueError(f'a prompt is a text or a list of Turns, found {prompt!r}')


def _sources(prompts: Any, images: Any, count: int) -> list[list[Source]]:
    """The images of each prompt, however they were nested."""
    several = isinstance(images, (list, tuple))
    if isinstance(prompts, str) or all(isinstance(turn, Turn) for turn in prompts):
        return [_row(images)]
    if images is None:
        return [[]] * count
    if not several or len(images) != count:
        given = f'a list of {len(images)}' if several else 'one image'
        raise ValueError(
            f'{count} prompts in a list but {given} as images: give a list with an entry for each prompt, '
            'which is an image, a list of images, or None'
        )
    return [_row(entry) for entry in images]


def _row(entry: Any) -> list[Source]:
    if entry is None:
        return []
    if not isinstance(entry, (list, tuple)):
        return [entry]
    if any(isinstance(source, (list, tuple)) or source is None for source in entry):
        raise ValueError(
            'the images of one prompt are nested too deep: give one image or a flat list of images'
        )
    return list(entry)
