"""A prompt and its answer fit into the context, or are an error that says by how much they do not."""

import dataclasses
import time

import pytest

from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.protocol.context import TokenLimit, context_length, prompt_ids, template_of, with_room
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.threads import background, in_background

PLAIN = GenerationSettings()


def too_long(call, *arguments) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    assert (caught.value.status, caught.value.code) == (400, 'context_length_exceeded')
    return caught.value


@pytest.fixture
def short(served):
    return dataclasses.replace(served, max_model_len=100)


def test_the_shorter_of_two_limits_counts(served, short):
    assert context_length(served) == 1024
    assert context_length(short) == 100
    assert context_length(dataclasses.replace(served, max_model_len=5000)) == 1024


@pytest.mark.parametrize(
    ('tokens', 'wanted', 'default', 'expected'),
    [
        (10, None, None, 512),
        (10, None, 16, 16),
        (10, 700, 16, 700),
        (1000, None, None, 24),
        (1000, 24, 16, 24),
    ],
)
def test_an_answer_has_the_room_that_is_wanted_or_left(served, tokens, wanted, default, expected):
    assert (
        with_room(PLAIN, tokens, TokenLimit(wanted), served, 'messages', default).max_new_tokens == expected
    )


def test_the_models_default_is_cut_to_the_room(served):
    model = served.model._replace(settings=GenerationSettings(max_new_tokens=900))
    served = dataclasses.replace(served, model=model)
    assert with_room(PLAIN, 10, TokenLimit(None), served, 'messages').max_new_tokens == 900
    assert with_room(PLAIN, 1000, TokenLimit(None), served, 'messages').max_new_tokens == 24


def test_what_can_never_fit_is_refused_with_the_numbers(short):
    error = too_long(with_room, PLAIN, 90, TokenLimit(11), short, 'messages')
    assert error.param == 'max_tokens'
    assert (
        error.message == 'a prompt of 90 tokens and 11 new ones exceed the context of 100: ask for at most 10'
    )
    error = too_long(with_room, PLAIN, 100, TokenLimit(None), short, 'messages')
    assert error.param == 'messages'
    assert 'the prompt has 100 tokens, but the context has 100' in error.message


def test_more_tokens_than_there_may_be_are_refused(served):
    with pytest.raises(ApiError, match='min_tokens is 9, but there are at most 5 new tokens') as caught:
        with_room(GenerationSettings(min_new_tokens=9), 10, TokenLimit(5), served, 'messages')
    assert caught.value.param == 'min_tokens'


def test_prompts_are_encoded_as_the_engine_does(served):
    processor = served.model.processor
    turns = [Turn('user', 'What?')]
    assert prompt_ids(turns, 1, 'vipllava', served, 'x') == processor.encode(turns, 1)
    assert too_long(prompt_ids, [Turn('user', 'x' * 300_000)], 0, 'vipllava', served, 'x').param == 'x'
    with pytest.raises(ApiError, match='write it once for each image') as caught:
        prompt_ids([Turn('user', '<image>')], 0, 'vipllava', served, 'messages')
    assert caught.value.param == 'messages'


def test_nobody_waits_while_a_long_text_is_encoded(served):
    served.model.processor.tokenizer.encode('What?')
    longest, begin = 0.0, time.perf_counter()
    encoding, last = background(lambda: served.model.processor.tokenizer.encode('a b ' * 250_000)), begin
    while in_background():
        time.sleep(0.002)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    longest = max(longest, time.perf_counter() - last)
    assert len(encoding()) > 500_000
    assert longest < max(0.3, (last - begin) / 2)


def test_templates_are_the_servers_or_the_requests(served):
    hub = dataclasses.replace(served, template='hub')
    assert [template_of(None, served), template_of(None, hub)] == ['vipllava', 'hub']
    assert template_of('plain', hub) == 'plain'
    for name in ('nothing', '', 'checkpoint'):
        with pytest.raises(ApiError) as caught:
            template_of(name, hub)
        assert caught.value.param == 'template'
