"""The bundled model: its accuracy, its files, and that transformers gives the same answers.

Its accuracy was measured on thousands of held-out questions (docs/demo.md): at least 95 % for marked things,
90 % over all types. These tests ask a small, fixed sample of those questions. For another random sample, an
equally good model would miss any of the bounds here with a probability below 0.001; for example, fewer than
53 right answers of 64 have a probability of 0.0001.
"""

import importlib.resources
import json

import pytest

from scripts.demo import exam, parity
from tests.worlds import of_all_types, rows
from vipllava_jax import loading
from vipllava_jax.convert import torch_files
from vipllava_jax.demo.marking import SHAPES
from vipllava_jax.evaluation import evaluate
from vipllava_jax.loading import bundled


@pytest.fixture
def score(demo_model, tmp_path):
    """A function from cases to the number of cases and of right answers in each group."""

    def evaluated(cases, **settings):
        result = evaluate(demo_model, rows(tmp_path, cases), images=tmp_path, **settings)
        return {score.group: (score.n, score.correct) for score in result.scores}

    return evaluated


def test_the_model_recognizes_marked_things(score):
    cases = [case for shape in SHAPES for case in exam.of_mark(shape, 8)]
    found = score(cases, by=['shape'])
    assert found['rows'][0] == 64
    assert found['rows'][1] >= 53
    for shape in SHAPES:
        assert found[f'shape {shape}'][1] >= 5, found


@pytest.mark.slow
def test_the_model_answers_all_types_of_questions(score):
    n, correct = score(of_all_types(3))['rows']
    assert n == 48
    assert correct >= 35


@pytest.mark.slow
def test_the_answer_follows_a_moved_mark(score):
    """If each answer is right in 95 % of the cases, both of a pair are in 90 %; by chance, in 1 of 144."""
    n, correct = score(exam.moved(32), together=['pair'])['pair']
    assert n == 32
    assert correct >= 23


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore')  # warnings in transformers
def test_transformers_gives_the_same_answers(tmp_path):
    import torch

    torch.set_num_threads(1)  # for a small model, threads would mostly wait for each other
    cases = [*of_all_types(1), *exam.moved(2)]
    written = rows(tmp_path, cases)
    assert len(written) == 20
    assert parity.ours('demo', written, tmp_path) == [*parity.theirs('demo', written, tmp_path)]


def test_the_model_is_in_the_package():
    inside = importlib.resources.files('vipllava_jax') / 'demo' / 'model'
    assert str(inside) == str(bundled())
    sizes = {path.name: path.stat().st_size for path in bundled().iterdir()}
    assert {'config.json', 'model.safetensors', 'tokenizer.json', 'preprocessor_config.json'} <= {*sizes}
    assert sizes['model.safetensors'] <= 8_000_000
    assert sum(sizes.values()) <= 8 * 2**20


def test_the_model_has_the_architecture_of_vip_llava():
    weights = loading.open(bundled())
    cfg = weights.cfg
    assert torch_files.is_torch_folder(bundled())
    assert {str(w.dtype) for _, w in weights.leaf_shapes()} == {'bfloat16'}
    assert len({*cfg.taps}) == 5
    assert cfg.projector_norm
    config = json.loads((bundled() / 'config.json').read_text())
    assert (config['model_type'], config['architectures']) == (
        'vipllava',
        ['VipLlavaForConditionalGeneration'],
    )
