"""Decodes pictures that are part of a message or a row: data URIs, and base64."""

import base64
import binascii
from itertools import pairwise

from vipllava_jax.messages import brief

PART = 1 << 18  # characters that are decoded at a time, whole groups of four; no thread runs meanwhile


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == 'data:'


def decode_data_uri(uri: str, name: str) -> bytes:
    """The bytes in a data URI; ValueError, which begins with the name, unless it is in base64."""
    return decode_base64(base64_of(uri, name), name)


def base64_of(uri: str, name: str) -> str:
    """The base64 in a data URI, unchecked; ValueError, which begins with the name, for another encoding."""
    header, _, data = uri.partition(',')
    if not is_data_uri(header) or not header.lower().endswith(';base64'):
        raise ValueError(f'{name}: expected a data URI in base64, found one that begins {brief(header)}')
    return data


def decode_base64(text: str, name: str) -> bytes:
    """The bytes of a text in base64; ValueError, which begins with the name, if it is invalid."""
    invalid = ValueError(f'{name}: the data is not valid base64')
    if -1 < text.find('=') < len(text) - 2:  # in the middle, where a part could end
        raise invalid
    cuts = [0, *range(PART, len(text) - 3, PART), len(text)]  # the last part is more than padding
    try:
        return b''.join(base64.b64decode(text[a:b], validate=True) for a, b in pairwise(cuts))
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise invalid from None
