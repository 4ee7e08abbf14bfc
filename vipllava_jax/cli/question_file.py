"""Reads files of questions, one per line."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from vipllava_jax.cli.paths import STDIN
from vipllava_jax.cli.stdin import MAX_TEXT, decode_text, read_text
from vipllava_jax.files import read_bytes

if TYPE_CHECKING:
    from vipllava_jax.inputs.marks import Mark

MAX_QUESTIONS = 10_000


class ListedQuestion(NamedTuple):
    """A line of a file of questions."""

    where: str  # 'questions.txt, line 3'
    text: str  # as in the file
    prompt: str  # with the phrases of the marks


def read_questions(path: str, marks: 'Sequence[Mark]') -> list[ListedQuestion]:
    """The lines of a file, or of stdin for '-', that are not blank, with the phrases of the marks.

    Raises ValueError if there is none, for a file that is too large or not UTF-8, and for the number of a
    mark that is not there, naming the line.
    """
    from vipllava_jax.answering.prompts import insert_phrases

    name = 'the questions on stdin' if path == STDIN else path
    if path == STDIN and sys.stdin.isatty():
        click.echo('Questions, one on each line, then Ctrl-D:', err=True)
    text = read_text(name) if path == STDIN else decode_text(read_bytes(Path(path), MAX_TEXT), f'{path}:')
    lines = [(number, line.strip()) for number, line in enumerate(text.split('\n'), 1) if line.strip()]
    if not lines:
        raise ValueError(f'{name}: no question: write one on each line')
    if len(lines) > MAX_QUESTIONS:
        raise ValueError(f'{name}: {len(lines)} questions, expected at most {MAX_QUESTIONS}: split the file')
    questions = []
    for number, line in lines:
        where = f'{name}, line {number}'
        try:
            questions.append(ListedQuestion(where, line, insert_phrases(line, marks)))
        except ValueError as error:
            raise ValueError(f'{where}: {error}') from None
    return questions
