"""Scores of answers are the log-probabilities of a forward pass over prompt and answer."""

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from tests import peer
from tests.generation.test_meshes import on_mesh
from tests.rows import ragged
from vipllava_jax.generation import scoring
from vipllava_jax.generation.scoring import passes, score_answers
from vipllava_jax.inputs.batch import Batch

forward = jax.jit(vj.forward, static_argnames='cfg')
ROWS = [(9, 2), (4, 0), (15, 1), (8, 3)]
LENGTHS = [[1, 3, 12, 3], [2], [5, 20], [1, 1, 9]]


@pytest.fixture
def scored(cfg, rng):
    """Four prompts with none to three images, and one to four answers of different lengths to each."""
    answers = [[rng.integers(3, cfg.image_token, n).tolist() for n in row] for row in LENGTHS]
    return ragged(cfg, rng, ROWS, T=48), answers


def whole(batch, answers, cfg):
    """The batch of every prompt with each of its answers."""
    rows = [(a, [*batch.tokens[a, : batch.lengths[a]], *ids]) for a, row in enumerate(answers) for ids in row]
    tokens = np.full((len(rows), 80), cfg.pad, np.int32)
    for padded, (_, ids) in zip(tokens, rows, strict=True):
        padded[: len(ids)] = ids
    of = [a for a, _ in rows]
    lengths = np.array([len(ids) for _, ids in rows], np.int32)
    return Batch(tokens, lengths, batch.images[of], batch.image_counts[of])


def sums(logits, batch, answers):
    """The sums of the log-probabilities of the answers, from the logits of whole rows, in float64."""
    logits = np.array(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, found = iter(log_p), []
    for length, several in zip(batch.lengths, answers, strict=True):
        of_row = [next(rows)[range(length - 1, length - 1 + len(ids)), ids].sum() for ids in several]
        found.append(np.array(of_row))
    return found


def check_close(found, expected, atol):
    assert [len(row) for row in found] == [len(row) for row in expected]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), rtol=1e-6, atol=atol)


@pytest.mark.slow
def test_scores_are_those_of_a_forward_pass_over_prompt_and_answer(params, cfg, scored):
    batch, answers = scored
    rows = whole(batch, answers, cfg)
    logits = forward(params, rows.tokens, rows.images, image_counts=rows.image_counts, cfg=cfg)
    expected = sums(logits, batch, answers)
    check_close(score_answers(params, batch, answers, cfg=cfg), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parity
def test_scores_are_those_of_transformers(tmp_path, cfg, scored):
    theirs, (batch, answers) = peer.model(cfg), scored
    theirs.save_pretrained(tmp_path)
    params = vj.load(tmp_path).params
    expected = sums(peer.run(theirs, whole(batch, answers, cfg)).logits.numpy(), batch, answers)
    check_close(score_answers(params, batch, answers, cfg=cfg), expected, 1e-4)


@pytest.mark.slow
def test_a_mesh_changes_nothing(params, cfg, scored):
    batch, answers = scored
    sharded = on_mesh(params, {'data': 3, 'tensor': 2})
    check_close(
        score_answers(sharded, batch, answers, cfg=cfg), score_answers(params, batch, answers, cfg=cfg), 1e-5
    )
    one = Batch(*(array[2:3] for array in batch))
    alone = score_answers(sharded, one, answers[2:3], cfg=cfg)
    check_close(alone, score_answers(params, one, answers[2:3], cfg=cfg), 1e-5)


@pytest.mark.slow
def test_answers_that_need_several_passes_are_scored_as_in_one(params, cfg, scored, monkeypatch):
    batch, answers = scored
    expected = score_answers(params, batch, answers, cfg=cfg)
    monkeypatch.setattr(scoring, 'AT_ONCE', 1)
    check_close(score_answers(params, batch, answers, cfg=cfg), expected, 1e-5)


def test_passes_contain_every_answer_have_few_shapes_and_bounded_logits(rng, monkeypatch):
    monkeypatch.setattr(scoring, 'AT_ONCE', 2**16)
    rows = [[[0] * n for n in rng.integers(1, 200, count)] for count in (300, 1, 170)]
    seen, shapes = [set() for _ in rows], set()
    for numbers, T in passes(rows, vocab=10):
        shapes.add((numbers.shape, T))
        for row, of_row, found in zip(rows, numbers, seen, strict=True):
            found.update(of_row.tolist())
            assert max(len(row[n]) for n in of_row) - 1 <= T
        assert numbers.size * T * 10 <= 2**16
    assert [len(found) for found in seen] == [300, 1, 170]
    assert len(shapes) <= 12


def test_weights_that_are_not_finite_are_named(params, cfg, scored):
    batch, answers = scored
    norm = {'w': params['llama']['norm']['w'].at[0].set(np.nan)}
    broken = params | {'llama': params['llama'] | {'norm': norm}}
    with pytest.raises(ValueError, match='not finite .*: llama/norm/w holds NaN'):
        score_answers(broken, batch, answers, cfg=cfg)


@pytest.mark.parametrize(
    ('answers', 'message'),
    [
        ([[[5]]] * 3, 'answers to 3 prompts, but 4 prompts'),
        ([[[5]], [], [[5]], [[5]]], 'row 1: there are no answers to score'),
        ([[[5]], [[5]], [[5], []], [[5]]], 'row 2: answer 1 is empty'),
        (
            [[[5]], [[5]], [[5], [128]], [[5]]],
            'row 2: answer 1 holds an id that the vocabulary lacks',
        ),
        ([[[5]], [[5]], [[5], [5] * 600], [[5]]], 'of answer 1 exceed the context of 512'),
    ],
)
def test_answers_that_cannot_be_scored_are_errors_before_anything_runs(cfg, scored, answers, message):
    with pytest.raises(ValueError, match=message):
        score_answers({}, scored[0], answers, cfg=cfg)
