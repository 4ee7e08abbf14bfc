"""Decodes pictures that are part of a message or a row: data URIs, and base64."""

import base64
import binascii

from vipllava_jax.messages import brief


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == 'data:'


def decode_data_uri(uri: str, name: str) -> bytes:
    """The bytes in a data URI; ValueError, which begins with the name, unless it is in base64."""
    header, _, data = uri.partition(',')
    if not is_data_uri(header) or not header.lower().endswith(';base64'):
        raise ValueError(f'{name}: expected a data URI in base64, found one that begins {brief(header)}')
    return decode_base64(data, name)


def decode_base64(text: str, name: str) -> bytes:
    """The bytes of a text in base64; ValueError, which begins with the name, if it is invalid."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise ValueError(f'{name}: the data is not valid base64') from None
