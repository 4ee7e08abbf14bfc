"""Parses a sentencepiece model: the few fields of its protocol buffer that a tokenizer needs.

The sentencepiece library is not used: it is a large C++ dependency, and it trusts its input.
"""

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # the types of pieces that matter here
BPE = 2  # the type of a model whose pieces are merged in the order of their scores
MAX_BYTES = 16 << 20  # bytes of a file, thirty times the size of Llama's
MAX_PIECES = 1 << 18
MAX_FIELDS = 1 << 10  # the maximum number of fields of a message, besides the pieces
MAX_PIECE_CHARACTERS = 256  # characters of a piece
MAX_CHARACTERS = 1 << 20  # characters of all pieces, six times the number in Llama's vocabulary
# the fields' numbers, from sentencepiece_model.proto
PIECES, TRAINER = 1, 2
TEXT, SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, BOS = 3, 46
FieldValue = int | float | bytes


class Piece(NamedTuple):
    """A piece of text in the vocabulary; a higher score is merged first."""

    text: str
    score: float = 0.0
    piece_type: int = NORMAL


class SentencePieceModel(NamedTuple):
    """The pieces, in the order of their ids, and the text of the beginning-of-sequence piece."""

    pieces: list[Piece]
    bos: str


def parse_model(data: bytes) -> SentencePieceModel:
    """The model in a tokenizer.model; ValueError says what is wrong with it."""
    pieces: list[Piece] = []
    model_type, bos = 1, '<s>'
    for field, value in _read_fields(data, MAX_PIECES):
        if field == PIECES:
            pieces.append(_read_piece(value))
        elif field == TRAINER:
            for inner, inner_value in _read_fields(value):
                if inner == MODEL_TYPE:
                    model_type = _integer_value(inner_value)
                elif inner == BOS:
                    bos = _text_value(inner_value)
    if model_type != BPE:
        raise ValueError(
            f'its model type is {model_type}, expected {BPE}, byte pairs' if pieces else 'no pieces'
        )
    types = {piece.text: piece.piece_type for piece in pieces}
    if len(types) < len(pieces):
        raise ValueError('two pieces are the same')
    if list(types.values()).count(UNKNOWN) != 1 or types.get(bos) != CONTROL:
        raise ValueError('it has no unknown token, or no beginning-of-sequence token')
    if sum(map(len, types)) > MAX_CHARACTERS:
        raise ValueError(f'its pieces have more than {MAX_CHARACTERS} characters in all')
    return SentencePieceModel(pieces, bos)


def _read_piece(data: FieldValue) -> Piece:
    text, score, piece_type = '', 0.0, NORMAL
    for field, value in _read_fields(data):
        if field == TEXT:
            text = _text_value(value)
        elif field == SCORE:
            if not isinstance(value, float) or not math.isfinite(value):
                raise ValueError('the score of a piece is not a finite number')
            score = value
        elif field == PIECE_TYPE:
            piece_type = _integer_value(value)
    if not 0 < len(text) <= MAX_PIECE_CHARACTERS:
        raise ValueError(f'a piece of {len(text)} characters, expected 1 to {MAX_PIECE_CHARACTERS}')
    return Piece(text, score, piece_type)


def _read_fields(data: FieldValue, max_fields: int = MAX_FIELDS) -> Iterator[tuple[int, FieldValue]]:
    """The numbers and values of a message's fields: integers, floats, and bytes for everything else."""
    if not isinstance(data, bytes):
        raise ValueError('a number where a message is expected')
    at = 0
    while at < len(data):
        max_fields -= 1
        if max_fields < 0:
            raise ValueError('too many pieces or other fields')
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value: FieldValue
            value, at = _read_varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            part = _read_bytes(data, at, size)
            value, at = struct.unpack('<d' if wire == 1 else '<f', part)[0], at + size
        elif wire == 2:
            size, at = _read_varint(data, at)
            value, at = _read_bytes(data, at, size), at + size
        else:
            raise ValueError(f'a field of unknown wire type {wire}')
        yield number, value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, 7 bits per byte and the lowest first, and the offset after it."""
    value = 0
    for n in range(10):
        byte = _read_bytes(data, at + n, 1)[0]
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, at + n + 1
    raise ValueError('a number of more than ten bytes')


def _read_bytes(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError('it ends in the middle of a field')
    return data[at : at + size]


def _integer_value(value: FieldValue) -> int:
    if not isinstance(value, int):
        raise ValueError('bytes where a whole number is expected')
    return value


def _text_value(value: FieldValue) -> str:
    if not isinstance(value, bytes):
        raise ValueError('a number where a string is expected')
    return value.decode()
