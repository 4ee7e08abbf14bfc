"""The bytes of single tokens: a token may be a part of a character, which has no text of its own."""

from collections.abc import Iterable

from vipllava_jax.inputs.tokenizer import Tokenizer

SPACE = '\u2581'  # stands for a space in the tokens of SentencePiece
BYTE_LEVEL_SPACE = '\u0120'  # the same in those of byte-level tokenizers


def token_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> list[bytes]:
    """The bytes of each id, in UTF-8; none for an id beyond the vocabulary."""
    backend, decoder = tokenizer.backend, tokenizer.backend.decoder
    added = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
    is_byte_level = decoder is not None and decoder.decode([BYTE_LEVEL_SPACE]) == ' '
    letters = byte_level_letters() if is_byte_level else {}

    def of(id: int) -> bytes:
        if id in added:
            return added[id].encode()
        token = backend.id_to_token(id) or ''
        if id in tokenizer.byte_ids:
            return bytes([int(token[3:5], 16)])  # <0xE2>
        if is_byte_level:
            return b''.join(bytes([letters[c]]) if c in letters else c.encode() for c in token)
        return token.replace(SPACE, ' ').encode()

    return [of(id) for id in ids]


def byte_level_letters() -> dict[str, int]:
    """The byte for which each letter stands in byte-level tokenizers.

    A printable byte is the letter of the same number; the others are those from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
