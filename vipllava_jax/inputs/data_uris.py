"""Decodes pictures that are part of a message or a row: data URIs, and base64."""

import base64
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from vipllava_jax.messages import brief

PART = 1 << 18  # characters that are decoded at a time, whole groups of four; no thread runs meanwhile
strict_base64 = partial(base64.b64decode, validate=True)


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


def decode_base64(text: str, name: str, decode: Callable[[str], bytes] = strict_base64) -> bytes:
    """The bytes of a text in base64; ValueError, which begins with the name, if it is invalid.

    `decode` raises ValueError for a part that is invalid.
    """
    invalid = ValueError(f'{name}: the data is not valid base64')
    if -1 < text.find('=') < len(text) - 2:  # in the middle, where a part could end
        raise invalid
    cuts = [0, *range(PART, len(text) - 3, PART), len(text)]  # the last part is more than padding
    try:
        return b''.join(decode(text[a:b]) for a, b in pairwise(cuts))
    except ValueError:  # binascii.Error is one
        raise invalid from None
