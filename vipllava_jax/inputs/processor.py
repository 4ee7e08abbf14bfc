"""The processor: prompts and images to the arrays that a model reads, and its ids back to text."""

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.folders import read_json
from vipllava_jax.inputs.images import Source, open_image
from vipllava_jax.inputs.pixels import Fit, Settings, check_fit, cut_off, pixels
from vipllava_jax.inputs.prompts import DEFAULT, IMAGE, ChatTemplate, Turn, check, render, stops
from vipllava_jax.inputs.tokenizer import Stream, Tokenizer

FILES = (  # all that a folder needs for Processor.load
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


class Batch(NamedTuple):
    """What a model reads, in arrays: each row's tokens and, in the order of its placeholders, its images."""

    tokens: np.ndarray  # BT int32, padded on the right
    lengths: np.ndarray  # B int32
    images: np.ndarray  # BIhw3 float32, I the most images of a row; zeros where a row has fewer
    image_counts: np.ndarray  # B int32


def bucket(length: int) -> int:
    """The smallest positive multiple of 128 that holds so many tokens: few shapes, few compilations."""
    return max(-(-length // 128), 1) * 128


@dataclass(frozen=True)
class Processor:
    """`processor(prompts, images)` -> Batch; `decode` and `stream` turn ids into text."""

    folder: Path
    tokenizer: Tokenizer
    settings: Settings
    image_id: int
    patch: int = 14  # pixels a side
    chat: ChatTemplate | None = None

    @property
    def patches(self) -> int:
        """The placeholders of an image, one for each feature that the model makes of it."""
        return (self.settings.side // self.patch) ** 2

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'Processor':
        """From the files of a folder, as transformers 4 or 5 or the model's authors write them."""
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {str(folder)!r}: expected that of a checkpoint')
        tokenizer = Tokenizer.load(folder)
        image_id = tokenizer.id_of(IMAGE)
        if image_id is None:
            raise ValueError(
                f'the tokenizer in {folder} has no {IMAGE}: copy that of a ViP-LLaVA checkpoint there'
            )
        own = read_json(folder / 'processor_config.json', optional=True)
        config = read_json(folder / 'config.json', optional=True)
        settings = _settings(folder, own, config)
        patch = own.get('patch_size') or (config.get('vision_config') or {}).get('patch_size') or cls.patch
        if not isinstance(patch, int) or not 1 <= patch <= settings.side:
            raise ValueError(
                f'{folder}: patch_size {patch!r} does not fit pictures of {settings.side} pixels a side'
            )
        return cls(folder, tokenizer, settings, image_id, patch, _chat(folder, tokenizer))

    def __call__(
        self,
        prompts: str | Sequence[Any],
        images: Any = None,
        *,
        template: str = DEFAULT,
        fit: Fit | None = None,
    ) -> Batch:
        """Prompts, each a text or a list of Turns, and the images of each -> Batch.

        One prompt takes no image, one, or a list of them; a list of prompts takes a list with one of these
        for each. ValueError names the row whose images do not fit its text. A mark that cropping would cut
        off is a warning; `fit='pad'` or 'squash' keeps the whole picture.
        """
        check(template, self.chat)
        check_fit(fit)
        one = _is_prompt(prompts)
        conversations = [_turns(prompt) for prompt in ([prompts] if one else _list(prompts))]
        sources = [_row(images)] if one else _rows(images, len(conversations))
        ids: list[list[int]] = []
        pictures: list[list[np.ndarray]] = []
        for row, (turns, own) in enumerate(zip(conversations, sources, strict=True)):
            try:
                ids.append(self.ids(turns, len(own), template))
            except ValueError as error:
                raise ValueError(f'row {row}: {error}') from None
            pictures.append([])
            for i, source in enumerate(own):  # no comprehension: a warning names the caller's line
                pictures[row].append(self._pixels(source, f'image {i} of row {row}', fit))
        return self.batch(ids, pictures)

    def batch(self, ids: Sequence[Sequence[int]], pictures: Sequence[Sequence[np.ndarray]]) -> Batch:
        """The ids of each row, and its pictures hw3 as `pixels` makes them -> Batch."""
        lengths = np.array([len(row) for row in ids], np.int32)
        counts = np.array([len(row) for row in pictures], np.int32)
        tokens = np.full((len(ids), bucket(lengths.max())), self.tokenizer.pad, np.int32)
        side = self.settings.side
        images = np.zeros((len(ids), counts.max(), side, side, 3), np.float32)
        for b, row in enumerate(ids):
            tokens[b, : len(row)] = row
            for i, picture in enumerate(pictures[b]):
                images[b, i] = picture
        return Batch(tokens, lengths, images, counts)

    def ids(self, turns: Sequence[Turn], images: int, template: str = DEFAULT) -> list[int]:
        """A conversation and the number of its images -> the ids that a model reads."""
        ids = self.tokenizer.encode(render(template, turns, images, self.chat))
        return [copy for id in ids for copy in [id] * (self.patches if id == self.image_id else 1)]

    def _pixels(self, source: Source, name: str, fit: Fit | None) -> np.ndarray:
        image = open_image(source, name)
        for mark in cut_off(image, self.settings, fit):
            warnings.warn(
                f"the crop cuts off the mark {mark} on {name}: fit='pad' (--fit pad) keeps the whole picture",
                stacklevel=3,
            )
        return pixels(image, self.settings, fit)

    def decode(self, output: Any) -> Any:
        """Ids T -> a text; ids BT, or what has `tokens` BT and `lengths` B -> a list of texts."""
        if hasattr(output, 'tokens'):
            rows = zip(np.asarray(output.tokens), np.asarray(output.lengths), strict=True)
            return [self.tokenizer.decode(ids[:length]) for ids, length in rows]
        ids = np.asarray(output)
        return [self.tokenizer.decode(row) for row in ids] if ids.ndim == 2 else self.tokenizer.decode(ids)

    def stream(self) -> Stream:
        """Decodes one row's ids as they come: `push(ids)` gives text as it is complete, `end()` the rest."""
        return Stream(self.tokenizer)

    def stops(self, template: str = DEFAULT) -> tuple[str, ...]:
        """The texts that end an answer in this template, besides the eos token."""
        return stops(template, self.chat)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files from which it loads again, without sentencepiece or config.json, to a folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self.folder / name).is_file() and self.folder.resolve() != target.resolve():
                shutil.copyfile(self.folder / name, target / name)
        if not (target / 'tokenizer.json').is_file():
            self.tokenizer.core.save(str(target / 'tokenizer.json'))
        own = read_json(target / 'processor_config.json', optional=True)
        if 'image_processor' not in own and not (target / 'preprocessor_config.json').is_file():
            (target / 'preprocessor_config.json').write_text(json.dumps(self.settings.fields(), indent=2))
        if not own.get('patch_size'):
            extra = {'num_additional_image_tokens': 1, 'vision_feature_select_strategy': 'default'}
            fields = {**extra, **own, 'image_token': IMAGE, 'patch_size': self.patch}
            (target / 'processor_config.json').write_text(json.dumps(fields, indent=2))


def _settings(folder: Path, own: dict[str, Any], config: dict[str, Any]) -> Settings:
    """From processor_config.json, preprocessor_config.json or, in the authors' checkpoints, config.json."""
    name = 'processor_config.json' if 'image_processor' in own else 'preprocessor_config.json'
    fields = own.get('image_processor') or read_json(folder / name, optional=True)
    if not isinstance(fields, dict):
        raise ValueError(f'{folder / name}: image_processor is {fields!r}, expected an object')
    if fields:
        return Settings.read(fields, str(folder / name))
    if 'mm_vision_tower' in config:
        return Settings(fit='pad' if config.get('image_aspect_ratio') == 'pad' else 'crop')
    raise FileNotFoundError(f"no {name} in {folder}: copy it there from the checkpoint's repository")


def _chat(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template, from whichever of the files that have held it over the years."""
    path = folder / 'chat_template.jinja'
    source: Any = path.read_text('utf-8', 'replace') if path.is_file() else None
    for name in ('chat_template.json', 'processor_config.json', 'tokenizer_config.json'):
        source = source or read_json(folder / name, optional=True).get('chat_template')
    if isinstance(source, list):  # several by name, as some tokenizers have
        named = [entry for entry in source if isinstance(entry, dict) and entry.get('name') == 'default']
        source = named[0].get('template') if named else None
    if not isinstance(source, str) or not source:
        return None
    tokens = {f'{name}_token': token for name, token in tokenizer.tokens.items()}
    return ChatTemplate(source, tokens)


def _is_prompt(value: Any) -> bool:
    """Whether it is one prompt: a text, or Turns."""
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, Turn) for turn in value)
    )


def _turns(prompt: Any) -> Sequence[Turn]:
    if not _is_prompt(prompt):
        raise ValueError(f'a prompt is a text or a list of Turns, found {prompt!r}')
    return [Turn('user', prompt)] if isinstance(prompt, str) else prompt


def _list(prompts: Any) -> Sequence[Any]:
    if not isinstance(prompts, (list, tuple)) or isinstance(prompts, Turn) or not prompts:
        raise ValueError(f'expected a prompt or a list of prompts, found {prompts!r}')
    return prompts


def _rows(images: Any, count: int) -> list[list[Source]]:
    """The images of each of a list of prompts."""
    if images is None:
        return [[] for _ in range(count)]
    if not isinstance(images, (list, tuple)) or len(images) != count:
        found = f'a list of {len(images)}' if isinstance(images, (list, tuple)) else 'one'
        raise ValueError(
            f'images of a list of {count} prompts are a list as long (images, lists, None); found {found}'
        )
    return [_row(entry) for entry in images]


def _row(images: Any) -> list[Source]:
    """The images of one prompt."""
    row = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    if any(image is None or isinstance(image, (list, tuple)) for image in row):
        raise ValueError(
            'the images of one prompt are an image, a list of images, or None; found a list or None in a list'
        )
    return row
