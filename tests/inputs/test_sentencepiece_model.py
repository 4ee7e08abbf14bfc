"""A tokenizer.model is read like sentencepiece reads it, and other files are refused."""

import contextlib
import json
import os
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.inputs.sentencepiece_model import CONTROL, UNKNOWN, Piece, parse_model
from vipllava_jax.inputs.tokenizer import Tokenizer
from vipllava_jax.messages import CheckpointError


def varint(n: int) -> bytes:
    out = b''
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number: int, value: object) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack('<f', value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: object, score: object = 0.0, piece_type: object = 1) -> bytes:
    return field(1, field(1, text) + field(2, score) + field(3, piece_type))


CONTROL_PIECES = piece('<unk>', 0.0, UNKNOWN) + piece('<s>', 0.0, CONTROL) + piece('</s>', 0.0, CONTROL)
BPE = field(2, field(3, 2))
VALID = CONTROL_PIECES + BPE + piece('a', -1.0) + piece('b', -2.0) + piece('ab', -0.5) + piece('▁', -3.0)


def test_a_model_is_parsed_into_pieces():
    model = parse_model(VALID)
    assert model.pieces[0] == Piece('<unk>', 0.0, UNKNOWN)
    assert [piece.text for piece in model.pieces] == ['<unk>', '<s>', '</s>', 'a', 'b', 'ab', '▁']
    assert model.bos == '<s>'
    assert parse_model(CONTROL_PIECES + field(2, field(3, 2) + field(46, '</s>'))).bos == '</s>'


def test_a_trained_model_is_parsed_as_by_sentencepiece(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['a dog sleeps on the old brown sofa, née 😀'] * 3),
        model_prefix=str(tmp_path / 'tokenizer'),
        model_type='bpe',
        vocab_size=300,
        byte_fallback=True,
        minloglevel=2,
        user_defined_symbols=['<image>'],
    )
    model = parse_model((tmp_path / 'tokenizer.model').read_bytes())
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
    ids = range(theirs.GetPieceSize())
    assert [piece.text for piece in model.pieces] == [theirs.IdToPiece(id) for id in ids]
    assert [piece.score for piece in model.pieces] == [theirs.GetScore(id) for id in ids]
    assert [piece.piece_type == CONTROL for piece in model.pieces] == [theirs.IsControl(id) for id in ids]
    assert [piece.piece_type == UNKNOWN for piece in model.pieces] == [theirs.IsUnknown(id) for id in ids]
    assert model.bos == theirs.IdToPiece(theirs.bos_id())


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'no pieces'),
        (b'nothing', 'wire type|middle of a field'),
        (VALID[:-3], 'ends in the middle of a field'),
        (CONTROL_PIECES, 'model type is 1, expected 2'),
        (CONTROL_PIECES + field(2, field(3, 1)), 'model type is 1, expected 2'),
        (BPE + piece('a'), 'it has no unknown token'),
        (BPE + piece('<unk>', 0.0, UNKNOWN), 'no beginning-of-sequence token'),
        (VALID + piece('x', 0.0, UNKNOWN), 'it has no unknown token'),
        (VALID + piece('a'), 'two pieces are the same'),
        (VALID + piece(''), 'a piece of 0 characters'),
        (VALID + piece('x' * 300), 'a piece of 300 characters'),
        (VALID + piece(7), 'a number where a string is expected'),
        (VALID + piece(b'\xff'), "can't decode byte"),
        (VALID + piece('x', float('nan')), 'not a finite number'),
        (VALID + piece('x', float('inf')), 'not a finite number'),
        (VALID + piece('x', 7), 'not a finite number'),
        (VALID + piece('x', 0.0, 'x'), 'bytes where a whole number is expected'),
        (VALID + field(1, 7), 'a number where a message is expected'),
        (VALID + b'\x80' * 11, 'more than ten bytes'),
        (VALID + varint(1 << 3 | 2) + varint(1 << 60), 'ends in the middle of a field'),
        (VALID + varint(9 << 3 | 3), 'wire type 3'),
        (VALID + b''.join(piece(f'{n:0>256}') for n in range(5_000)), 'characters in all'),
        (VALID + field(9, 1) * 300_000, 'too many pieces or other fields'),
        (VALID + field(2, field(3, 2) * 2000), 'too many pieces or other fields'),
    ],
    ids=range(24),
)
def test_anything_but_a_model_is_refused(tmp_path, data, message):
    (tmp_path / 'tokenizer.model').write_bytes(data)
    with pytest.raises(CheckpointError, match=f'tokenizer.model is not a sentencepiece model .*{message}'):
        Tokenizer.load(tmp_path)


@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_a_damaged_model_is_parsed_or_a_value_error(noise, seed):
    damaged, random_ = bytearray(VALID), random.Random(seed)
    for _ in range(3):
        damaged[random_.randrange(len(damaged))] = random_.randrange(256)
    for data in (noise, VALID + noise, bytes(damaged)):
        with contextlib.suppress(ValueError):
            assert parse_model(data).bos


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / 'tokenizer.model')
    with pytest.raises(CheckpointError, match='tokenizer.model: expected a regular file, found a FIFO'):
        Tokenizer.load(tmp_path)


def test_added_tokens_follow_the_pieces(tmp_path):
    (tmp_path / 'tokenizer.model').write_bytes(VALID)
    assert Tokenizer.load(tmp_path).encode('ab<image><pad>') == [1, 6, 5, 7, 8]
    (tmp_path / 'added_tokens.json').write_text(json.dumps({'<pad>': 7, '<image>': 8}))
    assert Tokenizer.load(tmp_path).encode('ab<image><pad>') == [1, 6, 5, 8, 7]
    (tmp_path / 'added_tokens.json').unlink()
    decoder = {'7': {'content': '<one>'}, '8': {'content': '<image>'}}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'added_tokens_decoder': decoder}))
    assert Tokenizer.load(tmp_path).encode('ab<image><one>') == [1, 6, 5, 8, 7]
