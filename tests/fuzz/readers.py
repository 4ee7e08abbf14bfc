"""Reads the files of a folder with the package; each reader may raise only ValueError or OSError."""

import contextlib
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.makers import noise

TEXTS = ('', 'What is within the red rectangle?', 'a' * 400, '<image>\n<s>é😀\x1b</s>', ' \t\n' * 50)
PICTURE = noise(90, 60)


def plan(folder: Path) -> None:
    """Reads everything about a checkpoint except its weights."""
    from vipllava_jax import loading
    from vipllava_jax.inputs.processor import Processor

    loading.locate(folder)
    loading.default_settings(folder)
    loading.open(folder).shapes()
    loading.open(folder, loading.WeightOptions(quantize='int8')).shapes()
    Processor.load(folder)


def weights(folder: Path) -> None:
    from vipllava_jax import loading
    from vipllava_jax.convert.torch_files import open_checkpoint

    check_tensors(folder, open_checkpoint(folder).values())
    loading.load(folder)


def pickle(folder: Path) -> None:
    from vipllava_jax.convert.torch_files import read_file

    check_tensors(folder, read_file(folder / 'pytorch_model.bin').values())


def check_tensors(folder: Path, found: Iterable[Any]) -> None:
    """Reads tensors; AssertionError if they are not in files of the folder."""
    from vipllava_jax.convert import tensors

    for tensor in found:
        assert isinstance(tensor, tensors.Tensor)
        assert folder in Path(tensor.file).parents, f'a tensor is in {tensor.file}'
        if tensor.dtype in tensors.READABLE:
            assert 0 <= tensor.offset <= tensor.offset + tensor.span <= os.path.getsize(tensor.file)
            np.array(tensors.read_tensor(tensor, memoryview(bytearray(tensor.span))))


def adapters(folder: Path) -> None:
    from tests.fuzz.base import CFG
    from vipllava_jax import loading
    from vipllava_jax.convert import adapters

    for name in ('peft', 'authors'):
        found = adapters.read_adapter(folder / name, CFG)
        check_tensors(folder, [tensor for pair in found.pairs.values() for tensor in (pair.a, pair.b)])
        check_tensors(folder, [tensor for _, tensor in found.replacements.values()])
        loading.open(folder / 'model', loading.WeightOptions(adapter=folder / name)).load()


def tokenizer(folder: Path) -> None:
    from vipllava_jax.inputs.processor import Processor

    processor = Processor.load(folder)
    for text in TEXTS:
        ids = processor.tokenizer.encode(text)
        processor.decode(ids)
        stream = processor.text_stream()
        for id in ids:
            stream.push([id])
        stream.end()
    processor(TEXTS[1], PICTURE)


def processor(folder: Path) -> None:
    from vipllava_jax.inputs.processor import Processor

    processor = Processor.load(folder)
    for fit in (None, 'crop', 'pad', 'squash'):
        batch = processor(TEXTS[1], PICTURE, fit=fit)
        assert np.isfinite(batch.images).all(), 'pixels are not finite'
    processor.save(folder / 'saved')


def chat(folder: Path) -> None:
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.inputs.prompts import Turn

    processor = Processor.load(folder)
    processor.stop_strings('checkpoint')
    turns = [Turn('user', 'What is it?'), Turn('assistant', 'A dog.'), Turn('user', 'Why?')]
    processor.encode(turns, 1, 'checkpoint')
    processor.encode([Turn('system', 'Be brief.'), *turns], 0, 'checkpoint')


def saved_chat(folder: Path) -> None:
    """Loads a chat, and prepares an answer to another question."""
    from tests.fuzz.base import CFG
    from vipllava_jax.answering.chat import Chat
    from vipllava_jax.generation.model import Model
    from vipllava_jax.inputs.processor import Processor

    model = Model({}, CFG, Processor.load(folder / 'model'))
    chat = Chat.load(folder / 'chat.json', model)
    repr(chat)
    chat.save(folder / 'chat.json')
    chat.stream(TEXTS[1], PICTURE)


def messages(folder: Path) -> None:
    """Reads a conversation in OpenAI's format, alone and with an image, and in a list of prompts."""
    from vipllava_jax.files import read_json
    from vipllava_jax.inputs.processor import Processor

    processor = Processor.load(folder)
    conversation = read_json(folder / 'messages.json').get('messages')
    errors = []
    for prompts, images in ((conversation, None), (conversation, PICTURE), ([conversation, 'Hi'], None)):
        try:
            processor(prompts, images)
        except (ValueError, OSError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def converted(folder: Path) -> None:
    """Checks that what can be read equals what was written."""
    import jax

    from vipllava_jax import loading

    loading.locate(folder / 'converted')
    stored = loading.open(folder / 'converted')
    stored.shapes()
    params = stored.load()
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), params, _source(folder))
    assert jax.tree.all(same), 'the weights are not those that were converted'


@functools.cache
def _source(folder: Path) -> Any:
    from vipllava_jax import loading

    return loading.open(folder / 'source').load()


def picture(folder: Path) -> None:
    from vipllava_jax.inputs.images import image_size, open_image
    from vipllava_jax.inputs.pixels import FITS, ImageSettings, pixels

    path = folder / 'picture'
    with contextlib.suppress(ValueError, OSError):
        image_size(path)
    picture = open_image(path)
    assert image_size(path) == picture.size, f'measure says {image_size(path)}, open_image {picture.size}'
    assert open_image(path.read_bytes()).size == picture.size
    for fit in FITS:
        pixels(picture, ImageSettings(), fit)


def mark(folder: Path) -> None:
    from vipllava_jax.inputs.images import Image
    from vipllava_jax.inputs.mark_syntax import parse_mark
    from vipllava_jax.inputs.marks import draw
    from vipllava_jax.inputs.pixels import FITS, ImageSettings, marks_cut_off, pixels

    values = json.loads((folder / 'mark.json').read_text())
    _, mark = parse_mark(values['mark'])
    assert parse_mark(str(mark))[1] == mark
    picture = draw(Image.new('RGB', values['size']), mark, values['seed'])
    for fit in FITS:
        marks_cut_off(picture, ImageSettings(), fit)
        pixels(picture, ImageSettings(), fit)
