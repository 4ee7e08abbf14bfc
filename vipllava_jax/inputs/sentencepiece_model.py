"""Parses a sentencepiece model: the few fields of its protocol buffer that a tokenizer needs.

The sentencepiece library is not used: it is a large C++ dependency, and it trusts its input.
"""

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # the kinds of pieces that matter here
BPE = 2  # the type of a model whose pieces are merged in the order of their scores
LARGEST = 16 << 20  # bytes of a file, thirty times those of Llama's
MOST_PIECES = 1 << 18
MOST_FIELDS = 1 << 10  # of a message, besides the pieces
LONGEST = 256  # characters of a piece
MOST_CHARACTERS = 1 << 20  # of all pieces, six times those of Llama's
# the fields' numbers, from sentencepiece_model.proto
PIECES, TRAINER = 1, 2
TEXT, SCORE, KIND = 1, 2, 3
TYPE, BOS = 3, 46
Field = int | float | bytes


class Piece(NamedTuple):
    text: str
    score: float = 0.0
    kind: int = NORMAL


class Model(NamedTuple):
    """The pieces, in the order of their ids, and the text of the beginning-of-sequence piece."""

    pieces: list[Piece]
    bos: str


def parse(data: bytes) -> Model:
    """The model in a tokenizer.model; ValueError says what is wrong with it."""
    pieces: list[Piece] = []
    kind, bos = 1, '<s>'
    for field, value in _fields(data, MOST_PIECES):
        if field == PIECES:
            pieces.append(_piece(value))
        elif field == TRAINER:
            for inner, given in _fields(value):
                if inner == TYPE:
                    kind = _number(given)
                elif inner == BOS:
                    bos = _text(given)
    if kind != BPE:
        raise ValueError(f'its model type is {kind}, expected {BPE}, byte pairs' if pieces else 'no pieces')
    kinds = {piece.text: piece.kind for piece in pieces}
    if len(kinds) < len(pieces):
        raise ValueError('two pieces are the same')
    if list(kinds.values()).count(UNKNOWN) != 1 or kinds.get(bos) != CONTROL:
        raise ValueError('no token for the unknown, or none that begins a text')
    if sum(map(len, kinds)) > MOST_CHARACTERS:
        raise ValueError(f'its pieces have more than {MOST_CHARACTERS} characters in all')
    return Model(pieces, bos)


def _piece(data: Field) -> Piece:
    text, score, kind = '', 0.0, NORMAL
    for field, value in _fields(data):
        if field == TEXT:
            text = _text(value)
        elif field == SCORE:
            if not isinstance(value, float) or not math.isfinite(value):
                raise ValueError('the score of a piece is not a finite number')
            score = value
        elif field == KIND:
            kind = _number(value)
    if not 0 < len(text) <= LONGEST:
        raise ValueError(f'a piece of {len(text)} characters, expected 1 to {LONGEST}')
    return Piece(text, score, kind)


def _fields(data: Field, most: int = MOST_FIELDS) -> Iterator[tuple[int, Field]]:
    """The numbers and values of a message's fields: integers, floats, and bytes for everything else."""
    if not isinstance(data, bytes):
        raise ValueError('a number where a message is expected')
    at = 0
    while at < len(data):
        most -= 1
        if most < 0:
            raise ValueError('too many pieces or other fields')
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value: Field
            value, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            part = _cut(data, at, size)
            value, at = struct.unpack('<d' if wire == 1 else '<f', part)[0], at + size
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = _cut(data, at, size), at + size
        else:
            raise ValueError(f'a field of unknown wire type {wire}')
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, 7 bits per byte and the lowest first, and the offset after it."""
    value = 0
    for n in range(10):
        byte = _cut(data, at + n, 1)[0]
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, at + n + 1
    raise ValueError('a number of more than ten bytes')


def _cut(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError('it ends in the middle of a field')
    return data[at : at + size]


def _number(value: Field) -> int:
    if not isinstance(value, int):
        raise ValueError('bytes where a whole number is expected')
    return value


def _text(value: Field) -> str:
    if not isinstance(value, bytes):
        raise ValueError('a number where a text is expected')
    return value.decode()
