"""Prepares a batch: checks everything before the weights are loaded."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vipllava_jax.cli.eval_settings import describe_model
from vipllava_jax.cli.models import open_model, weight_dtypes
from vipllava_jax.cli.paths import STDIN
from vipllava_jax.row_shards import Shard, check_parts, parse_shard

if TYPE_CHECKING:
    from vipllava_jax.batch_files.questions import QuestionMaker
    from vipllava_jax.batch_files.sources import Source
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.loading import Source as Weights
    from vipllava_jax.weight_options import WeightOptions


class OpenedInput(NamedTuple):
    """The rows, and where they and their pictures are."""

    rows: 'Source'
    path: Path | None  # None: stdin
    images: Path  # the folder of the pictures


class PreparedBatch(NamedTuple):
    """A batch that is ready to run: everything but the weights."""

    input: OpenedInput
    output: Path  # of this part, if the rows are divided
    shard: Shard | None
    weights: 'Weights'
    processor: 'Processor'
    settings: dict[str, Any]  # everything on which the answers depend
    options: dict[str, Any]  # those of the command that say how rows are asked

    def maker(self, settings: dict[str, Any]) -> 'QuestionMaker':
        """Makes the questions with the seed in the settings of the output, which may be an earlier one."""
        from vipllava_jax.batch_files.questions import QuestionMaker
        from vipllava_jax.generation.model import Model
        from vipllava_jax.generation.settings import GenerationSettings

        given = dict(self.options['settings'])
        drawn = given.pop('drawn_seed')
        asked = GenerationSettings(**{'seed': settings.get('drawn_seed', drawn), **given})
        fields = {name: self.options[name] for name in ('template', 'fit', 'prompt', 'marks')}
        model = Model({}, self.weights.cfg, self.processor, asked)
        return QuestionMaker(self.input.images, asked, model=model, **fields)


def open_source(rows: str, images: str | None, options: dict[str, Any]) -> OpenedInput:
    """The rows of a file, of stdin or of a folder; ValueError or OSError if there are none."""
    from vipllava_jax.batch_files.picture_folder import FolderRows
    from vipllava_jax.batch_files.questions import read_marks
    from vipllava_jax.batch_files.sources import FileRows, StreamRows

    read_marks(options['marks'])
    if images is not None and not os.path.isdir(images):
        raise FileNotFoundError(f'no folder of pictures {images!r}')
    path, folder = Path(rows), None if images is None else Path(images)
    if rows == STDIN:
        stream = getattr(sys.stdin, 'buffer', None)
        if stream is None or sys.stdin.isatty():
            raise ValueError('there are no rows on stdin: pipe them in, or give the path of a file')
        return OpenedInput(StreamRows(stream, 'stdin'), None, folder or Path())
    if not path.is_dir():
        return OpenedInput(FileRows(path), path, folder or path.parent)
    if folder is not None:
        raise ValueError(f'{rows} is itself a folder of pictures: leave out --images')
    if options['prompt'] is None:
        raise ValueError(f'{rows} is a folder: give the question about each of its pictures with --prompt')
    return OpenedInput(FolderRows(path), path, path)


def prepare(
    source: str,
    opened: OpenedInput,
    output: Path,
    shard: str | None,
    options: 'WeightOptions',
    mesh: Any,
    asked: dict[str, Any],
) -> PreparedBatch:
    """Locates the checkpoint, and checks everything that can be checked without reading the weights."""
    from vipllava_jax.batch_files.output import check_output_name
    from vipllava_jax.batch_files.run_file import run_path
    from vipllava_jax.evaluation.outputs import check_outputs

    part = None if shard is None else parse_shard(shard, os.environ)
    if part:
        check_parts(output, part.count)
    path = part.file(output) if part else output
    check_output_name(path)
    files = {'--output': path, 'the file next to --output': run_path(path)}
    check_outputs(files, [opened.path] if opened.path else [])
    weights, processor = open_model(source, options, mesh)
    adapter = options.adapter
    check_outputs(files, (), [weights.folder, *([Path(adapter)] if adapter else [])])
    settings = {
        **describe_model(source, weights.folder, str(adapter) if adapter else None, portable=True),
        **weight_dtypes(weights.shapes()),
        'data': opened.rows.fingerprint(),
        'images': str(opened.images),
        **{name: asked[name] for name in ('template', 'fit', 'prompt')},
        'marks': [*asked['marks']],
        **asked['settings'],
    }
    if part:
        settings['shard'] = str(part)
    return PreparedBatch(opened, path, part, weights, processor, settings, asked)
