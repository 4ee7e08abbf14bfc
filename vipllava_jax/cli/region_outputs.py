"""What `vipllava regions` writes: JSON lines, annotations with captions, or a picture with the answers."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vipllava_jax.cli.answer_reports import report_answer
from vipllava_jax.cli.pictures import FORMATS as PICTURES
from vipllava_jax.cli.pictures import save_picture
from vipllava_jax.files import (
    append,
    check_output,
    check_regular,
    lock_for_appending,
    parse_record,
    write_text,
)
from vipllava_jax.messages import brief, safe_json

if TYPE_CHECKING:
    from vipllava_jax.answering.regions import RegionAnswer
    from vipllava_jax.cli.region_plan import Request

KINDS = ('jsonl', 'coco', 'picture')
SUFFIXES = {'.jsonl': 'jsonl', '.json': 'coco', **dict.fromkeys(PICTURES, 'picture')}
START = b'{"index": '  # of each line
Write = Callable[[Sequence[dict[str, Any]]], None]


def output_kind(output: str | None, kind: str | None, resume: bool, inputs: Sequence[str]) -> str:
    """One of KINDS, for a file; ValueError or OSError if it cannot be written, or is one of the inputs."""
    if output is None:
        if kind not in (None, 'jsonl') or resume:
            raise ValueError(f'{"--resume" if resume else f"--format {kind}"} needs --output FILE')
        return 'jsonl'
    suffix = Path(output).suffix.lower()
    if kind is None and suffix not in SUFFIXES:
        raise ValueError(
            f'{output}: expected a name that ends in .jsonl, .json (COCO) or .png, or give --format'
        )
    kind = kind or SUFFIXES[suffix]
    if kind == 'picture' and suffix not in PICTURES:
        raise ValueError(f'{output}: expected a name that ends in .png or .jpg for --format picture')
    if resume and kind != 'jsonl':
        raise ValueError('--resume continues JSON lines: give a name that ends in .jsonl, or leave it out')
    check_output(Path(output), [Path(path) for path in inputs])
    if not resume and os.path.exists(output) and os.path.getsize(output):
        advice = 'give another name' + (', or --resume to add what is missing' if kind == 'jsonl' else '')
        raise ValueError(f'{output} exists: {advice}')
    return kind


def record(answer: 'RegionAnswer', request: 'Request') -> dict[str, Any]:
    """The line of an answer."""
    return {**asked(answer.index, request), **report_answer(answer.reply, answer.text)}


def asked(n: int, request: 'Request') -> dict[str, Any]:
    """The fields that say what an answer is about: its region, the picture, the question and the model."""
    from vipllava_jax.data.marking import bounds, in_pixels

    inputs = request.inputs
    box = bounds(in_pixels(inputs.marks[n], inputs.picture.size))
    annotation = inputs.annotations[n] if inputs.annotations else {}
    return {
        'index': inputs.indices[n],
        **({'id': annotation['id']} if 'id' in annotation else {}),
        'image': inputs.name,
        'box': [round(value, 2) for value in box],
        'question': request.questions.prompts[n],
        **request.model,
    }


@contextlib.contextmanager
def open_lines(path: str | None, request: 'Request') -> Iterator[tuple[Write, set[int]]]:
    """Yields a function that appends lines to a file, or prints them, and the regions that have an answer.

    An incomplete last line, of a process that was killed, is removed. Raises ValueError if the file has
    anything but answers of the same model to the same question about these regions.
    """
    if path is None:
        stdout = sys.stdout  # which a progress bar replaces

        def show(records: Sequence[dict[str, Any]]) -> None:
            for fields in records:
                click.echo(safe_json(fields), file=stdout)

        yield show, set()
        return
    if os.path.exists(path):
        check_regular(Path(path))
    with open(path, 'a+b', buffering=0) as file:
        lock_for_appending(Path(path), file.fileno())
        answered, size = read_answered(path, file, request)
        os.ftruncate(file.fileno(), size)

        def write(records: Sequence[dict[str, Any]]) -> None:
            lines = ''.join(safe_json(fields) + '\n' for fields in records)
            append(Path(path), file.fileno(), lines.encode())

        yield write, answered


def read_answered(path: str, file: Any, request: 'Request') -> tuple[set[int], int]:
    """The regions whose answers are in a file, and the bytes of its complete lines."""
    places = {index: n for n, index in enumerate(request.inputs.indices)}
    answered, size = set[int](), 0
    advice = 'give the same arguments as before, or another --output'
    file.seek(0)
    for number, line in enumerate(file, 1):
        where = f'{path}, line {number}'
        if not line.endswith(b'\n') and line[: len(START)] == START[: len(line)]:
            break
        found = parse_record(line, where, 'give another --output')
        index = found.get('index')
        n = places.get(index) if isinstance(index, int) else None
        if n is None:
            raise ValueError(f'{where} is about a region that is not asked about: {advice}')
        if not isinstance(found.get('answer'), str):
            raise ValueError(f'{where} has no answer: {advice}')
        for name, value in {'adapter': None, **asked(n, request)}.items():
            if found.get(name) != value:
                raise ValueError(
                    f'{where} has the {name} {brief(found.get(name))}, now it is {brief(value)}: {advice}'
                )
        answered.add(n)
        size += len(line)
    return answered, size


def write_coco(path: str, request: 'Request', texts: Sequence[str]) -> None:
    """Writes the annotations of the picture with their captions, in COCO's format."""
    from vipllava_jax.data.coco import as_annotation

    inputs, size = request.inputs, request.inputs.picture.size
    image = {'id': 1, 'file_name': inputs.name, 'width': size[0], 'height': size[1]}
    content: dict[str, Any] = {'images': [image], 'annotations': []}
    if inputs.source:
        if inputs.source.image:
            content['images'] = [inputs.source.image]
        elif inputs.source.annotations:
            image['id'] = inputs.source.annotations[0].get('image_id')
        if inputs.source.categories:
            content['categories'] = inputs.source.categories
    for n, (mark, text) in enumerate(zip(inputs.marks, texts, strict=True)):
        if inputs.annotations:
            fields = inputs.annotations[n]
        else:
            fields = {'id': inputs.indices[n] + 1, 'image_id': 1, **as_annotation(mark, size)}
        content['annotations'].append({**fields, 'caption': text})
    write_text(Path(path), json.dumps(content) + '\n')


def write_picture(path: str, request: 'Request', texts: Sequence[str]) -> None:
    """Saves the picture with numbered marks, and the answers beneath it."""
    from vipllava_jax.answering.captioned_picture import captioned_picture

    save_picture(captioned_picture(request.inputs.picture, request.inputs.marks, texts), path)
