"""Batches of cases have few shapes, and many questions about one picture are answered apart from others."""

import numpy as np
import pytest

from vipllava_jax.evaluation.grouping import SHARING, CaseShape, divide

CONTEXT = 512


def random_shapes(rng, count=300):
    """Cases about some pictures with marks, of which few have many questions, and cases without a picture."""
    of_picture = rng.zipf(1.4, count) % 40
    return [
        CaseShape('', 64, int(picture > 0), int(rng.integers(20, 300)), n, f'picture {picture}')
        for n, picture in enumerate(of_picture.tolist())
    ]


@pytest.mark.parametrize('batch', [1, 5, 8, 16, 100])
def test_every_case_is_in_one_batch_and_sizes_are_few(rng, batch):
    shapes = random_shapes(rng)
    batches = [*divide(shapes, batch, CONTEXT)]
    assert sorted(n for one in batches for n in one.numbers) == [*range(300)]
    assert all(len(one.numbers) <= one.size <= batch for one in batches)
    assert {one.max_new_tokens for one in batches} == {64}
    assert len({one.size for one in batches if one.one_picture}) <= 5
    assert len({one.size for one in batches if not one.one_picture}) == 1
    assert [*divide(shapes[::-1], batch, CONTEXT)] == batches


@pytest.mark.parametrize('batch', [5, 8, 16])
def test_batches_about_one_picture_hold_many_questions_about_it_and_no_others(rng, batch):
    shapes = random_shapes(rng)
    batches = [*divide(shapes, batch, CONTEXT)]
    assert any(one.one_picture for one in batches) == (batch >= SHARING)
    left: dict[str, int] = {}
    for one in batches:
        pictures = [shapes[n].pictures for n in one.numbers]
        if one.one_picture:
            assert len(one.numbers) >= SHARING
            assert len({*pictures}) == 1
            assert shapes[one.numbers[0]].images
            continue
        for n, picture in zip(one.numbers, pictures, strict=True):
            left[picture] = left.get(picture, 0) + shapes[n].images
    assert batch < SHARING or max(left.values()) < SHARING


def test_cases_of_different_settings_or_pictures_are_not_about_one_picture():
    alike = [CaseShape('pad', 64, 1, 40, n, 'a') for n in range(20)]
    assert [one.one_picture for one in divide(alike, 16, CONTEXT)] == [False, True]
    for other in ({'fit': 'crop'}, {'new_tokens': 9}, {'pictures': 'b'}):
        mixed = [shape._replace(**other) if shape.number % 4 else shape for shape in alike]
        batches = [*divide(mixed, 16, CONTEXT)]
        assert [len(one.numbers) for one in batches if one.one_picture] == [15]
    assert not any(
        one.one_picture for one in divide([shape._replace(images=0) for shape in alike], 16, CONTEXT)
    )


def test_lengths_limit_the_answers_of_all_cases_with_the_same_settings():
    rng = np.random.default_rng(1)
    shapes = [shape._replace(length=500) if shape.number == 7 else shape for shape in random_shapes(rng)]
    assert {one.max_new_tokens for one in divide(shapes, 16, CONTEXT)} == {12}
