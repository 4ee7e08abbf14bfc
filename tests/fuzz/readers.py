"""What the package does with the files of a folder. Each may raise ValueError or OSError, nothing else."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ('', 'What is within the red rectangle?', 'a' * 400, '<image>\n<s>é😀\x1b</s>', ' \t\n' * 50)
ANY: Any = None  # where a value is only passed on


class Reached(Exception):
    """All checks are done; what would come next is long work."""


def plan(folder: Path) -> None:
    """All that is known of a checkpoint before its weights are read."""
    from vipllava_jax import loading
    from vipllava_jax.inputs.processor import Processor

    loading.locate(folder)
    loading.abstract(folder)
    loading.abstract(folder, quantize='int8')
    Processor.load(folder)


def weights(folder: Path) -> None:
    from vipllava_convert.torch_files import open_checkpoint

    from vipllava_jax import loading

    within(folder, open_checkpoint(folder).values())
    loading.load(folder)


def pickle(folder: Path) -> None:
    from vipllava_convert.torch_files import read_file

    within(folder, read_file(folder / 'pytorch_model.bin').values())


def within(folder: Path, found: Iterable[Any]) -> None:
    """Reads tensors; AssertionError if they are not in files of the folder."""
    from vipllava_convert import tensors

    for tensor in found:
        assert isinstance(tensor, tensors.Tensor)
        assert folder in Path(tensor.file).parents, f'a tensor is in {tensor.file}'
        if tensor.dtype in tensors.READABLE:
            assert 0 <= tensor.offset <= tensor.offset + tensor.span <= os.path.getsize(tensor.file)
            np.array(tensors.read(tensor, memoryview(bytearray(tensor.span))))


def adapters(folder: Path) -> None:
    from vipllava_convert import adapters

    from tests.fuzz.base import CFG
    from vipllava_jax import loading

    for kind in ('peft', 'authors'):
        found = adapters.read(folder / kind, CFG)
        within(folder, [tensor for pair in found.pairs.values() for tensor in (pair.a, pair.b)])
        within(folder, [tensor for _, tensor in found.whole.values()])
        loading.weights(folder / 'model', adapter=folder / kind)


def tokenizer(folder: Path) -> None:
    from vipllava_jax.inputs.processor import Processor

    processor = Processor.load(folder)
    for text in TEXTS:
        ids = processor.tokenizer.encode(text)
        processor.decode(ids)
        stream = processor.stream()
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
    processor.stops('checkpoint')
    turns = [Turn('user', 'What is it?'), Turn('assistant', 'A dog.'), Turn('user', 'Why?')]
    processor.ids(turns, 1, 'checkpoint')
    processor.ids([Turn('system', 'Be brief.'), *turns], 0, 'checkpoint')


def converted(folder: Path) -> None:
    from vipllava_jax import loading

    loading.locate(folder)
    loading.abstract(folder)
    loading.weights(folder)


def picture(folder: Path) -> None:
    from vipllava_jax.inputs.images import measure, open_image
    from vipllava_jax.inputs.pixels import FITS, Settings, pixels

    path = folder / 'picture'
    with contextlib.suppress(ValueError, OSError):
        measure(path)
    picture = open_image(path)
    assert measure(path) == picture.size, f'measure says {measure(path)}, open_image {picture.size}'
    assert open_image(path.read_bytes()).size == picture.size
    for fit in FITS:
        pixels(picture, Settings(), fit)


def mark(folder: Path) -> None:
    from vipllava_jax.inputs.images import Image
    from vipllava_jax.inputs.mark_syntax import parse
    from vipllava_jax.inputs.marks import draw
    from vipllava_jax.inputs.pixels import FITS, Settings, cut_off, pixels

    told = json.loads((folder / 'mark.json').read_text())
    _, mark = parse(told['mark'])
    assert parse(str(mark))[1] == mark
    picture = draw(Image.new('RGB', told['size']), mark, told['seed'])
    for fit in FITS:
        cut_off(picture, Settings(), fit)
        pixels(picture, Settings(), fit)


def rows(folder: Path) -> None:
    """Each data file, strictly and with broken rows skipped, up to what the model reads."""
    errors = []
    for file in (folder / 'rows.json', folder / 'rows.jsonl'):
        for skip_broken in (False, True):
            for read in (_trained_on, _evaluated_with):
                try:
                    read(folder, file, skip_broken)
                except (ValueError, OSError) as error:
                    errors.append(error)
    if errors:
        raise errors[0]


def _trained_on(folder: Path, file: Path, skip_broken: bool) -> None:
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.training import rows
    from vipllava_jax.training.batches import Batches

    found = rows.read([file], skip_broken=skip_broken)
    batches = Batches(
        found,
        Processor.load(folder / 'model'),
        batch_size=2,
        skip_broken=skip_broken,
        report=lambda told: None,
    )
    for step in range(batches.steps + 1):
        batches.at(step)


def _evaluated_with(folder: Path, file: Path, skip_broken: bool) -> None:
    from tests.fuzz.base import CFG
    from vipllava_jax.evaluation import cases
    from vipllava_jax.evaluation.answering import questions
    from vipllava_jax.inputs.processor import Processor

    found = cases.read(file, skip_broken=skip_broken)
    asked = questions(found, Processor.load(folder / 'model'), CFG, batch=2, skip_broken=skip_broken)
    for batch in asked.batches:
        asked.make(batch)


def journals(folder: Path) -> None:
    """Goes on with answers and with a run, up to the point where weights are needed."""
    from tests.fuzz.base import ABOUT, CFG
    from vipllava_jax.evaluation import cases, run
    from vipllava_jax.evaluation.answering import questions
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.training import checkpoints, config, identity, loop
    from vipllava_jax.training.metrics import Metrics
    from vipllava_jax.training.progress import Silent

    def reached(_: Any) -> Any:
        raise Reached

    asked = questions(
        cases.read(folder / 'rows.jsonl'), Processor.load(folder / 'model'), CFG, max_new_tokens=2
    )
    with contextlib.suppress(Reached):
        run.run(asked, reached, folder / 'answers.jsonl', ABOUT)
    with (
        contextlib.closing(Metrics(folder / 'run', 2)) as metrics,
        checkpoints.opened(folder / 'run' / 'checkpoints', keep=2) as saved,
    ):
        loop.Run(ANY, saved, metrics, Silent())
    with contextlib.chdir(folder):
        settings = config.settings('run.toml')
        identity.made(folder / 'run', folder / 'run' / 'adapter')
        identity.confirm(folder / 'run', settings, begun=True)


def run(folder: Path) -> None:
    """A run's settings, and all that is checked before it begins."""
    from vipllava_jax.training import config, prepare
    from vipllava_jax.training.progress import Silent

    with contextlib.chdir(folder):
        prepare.plan(config.settings('run.toml'), Silent())


def command(folder: Path) -> None:
    """A command line, in this process, with the folder as the working directory."""
    from vipllava_jax import cli

    fifo = folder / 'fifo'
    os.mkfifo(fifo)
    (folder / 'link.png').symlink_to('photo.png')
    arguments = folder / 'arguments.json'
    sys.argv = ['vipllava', *json.loads(arguments.read_text())]
    sys.stdin = io.TextIOWrapper(io.BytesIO((folder / 'stdin').read_bytes()))
    with contextlib.chdir(folder):
        cli.run()


def _picture() -> Any:
    from tests.makers import noise

    return noise(90, 60)


PICTURE = _picture()
