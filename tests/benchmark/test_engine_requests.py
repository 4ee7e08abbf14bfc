"""Random requests: exact lengths, the same for the same seed."""

import numpy as np
import pytest

from vipllava_jax.benchmark.engine_requests import TEMPLATE, Requests, poisson_arrivals
from vipllava_jax.benchmark.engine_words import words_processor
from vipllava_jax.benchmark.subject import PRESETS, silent
from vipllava_jax.inputs.prompts import Turn

TINY = silent(PRESETS['tiny'])


@pytest.fixture(scope='module')
def requests() -> Requests:
    return Requests(TINY)


@pytest.mark.parametrize('kind', ['new_pictures', 'one_picture', 'mixed_lengths'])
def test_prompts_have_the_length_that_they_say(requests, kind):
    processor = words_processor(TINY)
    for prompt, picture, tokens, _ in getattr(requests, kind)(8, 5):
        assert len(processor.encode([Turn('user', prompt)], 1, TEMPLATE)) == tokens
        assert (picture.shape, picture.dtype) == ((112, 112, 3), np.uint8)


@pytest.mark.parametrize('kind', ['new_pictures', 'one_picture', 'mixed_lengths'])
def test_a_seed_gives_the_same_requests_and_another_seed_other_ones(requests, kind):
    first, again, other = (getattr(requests, kind)(4, seed) for seed in (5, 5, 6))
    for a, b, c in zip(first, again, other, strict=True):
        assert (a.prompt, a.new) == (b.prompt, b.new)
        np.testing.assert_array_equal(a.picture, b.picture)
        assert a.prompt != c.prompt
        assert (a.picture != c.picture).any()


def test_pictures_are_shared_only_by_questions_about_one(requests):
    def different(found):
        return len({request.picture.tobytes() for request in found})

    assert different(requests.new_pictures(6, 1)) == 6
    assert different(requests.mixed_lengths(6, 1)) == 6
    assert different(requests.one_picture(6, 1)) == 1
    assert len({request.prompt for request in requests.one_picture(6, 1)}) == 6


def test_mixed_lengths_reach_from_600_to_1500_tokens_at_7b_and_answers_from_1_to_256():
    mixed = Requests(silent(PRESETS['7b'])).mixed_lengths(100, 0)
    tokens, new = ([getattr(request, name) for request in mixed] for name in ('tokens', 'new'))
    assert min(tokens) >= 600
    assert max(tokens) <= 1500
    assert min(new) >= 1
    assert max(new) <= 256
    assert np.ptp(tokens) > 700
    assert np.ptp(new) > 200


def test_arrivals_are_in_order_at_the_given_rate():
    times = poisson_arrivals(10_000, 40, 0)
    assert (np.diff([0, *times]) > 0).all()
    assert times[-1] == pytest.approx(250, rel=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    assert times[:5] == poisson_arrivals(5, 40, 0)
    assert times[:5] != poisson_arrivals(5, 40, 1)
