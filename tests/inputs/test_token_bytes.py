"""The bytes of the tokens of a text are those of the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from tests.makers import tiny_tokenizer
from vipllava_jax.inputs.token_bytes import byte_level_letters, token_bytes
from vipllava_jax.inputs.tokenizer import Tokenizer

TEXTS = st.text(st.characters(codec='utf-8', exclude_characters='\u2581<'), max_size=12)


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_tokens(['Ġadded'])
    return Tokenizer(core, {})


TOKENIZERS = {'bytes as tokens': Tokenizer(tiny_tokenizer(), {}), 'bytes as letters': byte_level()}


@pytest.mark.parametrize('name', TOKENIZERS)
@given(text=TEXTS)
def test_the_bytes_of_all_tokens_are_those_of_the_text(name, text):
    tokenizer = TOKENIZERS[name]
    ids = [id for id in tokenizer.encode(text) if id not in tokenizer.special_ids]
    joined = b''.join(token_bytes(tokenizer, ids)).decode()
    assert joined.removeprefix(' ' if name == 'bytes as tokens' else '') == text


def test_a_token_may_be_a_part_of_a_character():
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.encode('é')
        assert token_bytes(tokenizer, ids)[-2:] == [b'\xc3', b'\xa9']


def test_added_tokens_are_spelled_as_they_are_and_unknown_ids_are_empty():
    tiny, letters = TOKENIZERS.values()
    assert token_bytes(tiny, [tiny.token_to_id('</s>'), 10**6]) == [b'</s>', b'']
    assert token_bytes(letters, [letters.token_to_id('Ġadded')]) == ['Ġadded'.encode()]


def test_the_letters_of_bytes_are_those_of_the_library():
    assert sorted(byte_level_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_level_letters().values()) == [*range(256)]
