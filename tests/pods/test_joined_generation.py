"""Two real processes generate with one model, divided over the devices of both, as one process does."""

import json

import numpy as np
import pytest

import vipllava_jax as vj
from tests.processes import run_processes
from vipllava_jax.evaluation import evaluate

SETTINGS = [
    dict(temperature=0.0),
    dict(temperature=0.9, seed=3, top_p=0.9),
    dict(num_beams=2, num_return_sequences=2, max_time=1e6),
]
GENERATES = """
import json, sys
import numpy as np
from vipllava_jax import pods
pods.join('on')
import vipllava_jax as vj
model = vj.load(FOLDER, mesh=MESH)
batch = model.processor(['What is it?', 'Who? ' * 9, 'Describe the picture.'])
answers = []
for settings in SETTINGS:
    out = vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=6, **settings)
    answers.append(np.asarray(out.tokens).tolist())
from vipllava_jax.evaluation import evaluate
rows = [{'question': f'Who is {n}?', 'answer': 'x'} for n in range(5)]
result = evaluate(model, rows, max_new_tokens=3, batch=2, answers='answers.jsonl')
chosen = vj.choose(model, 'Who?', ['A dog', 'Two people'])
print(json.dumps([answers, result.answers, chosen.scores]))
pods.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'mesh',
    [
        {'data': 2, 'tensor': 2},
        pytest.param({'tensor': 4}, marks=pytest.mark.by_hand),
        pytest.param({'data': 4}, marks=pytest.mark.by_hand),
    ],
    ids=str,
)
def test_every_process_gets_the_results_of_a_single_device(folder, mesh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = GENERATES.replace('FOLDER', repr(str(folder))).replace('MESH', repr(mesh))
    script = script.replace('SETTINGS', repr(SETTINGS))
    first, second = run_processes(script)
    assert (first.code, second.code) == (0, 0), first.err
    assert first.out == second.out
    model = vj.load(folder)
    batch = model.processor(['What is it?', 'Who? ' * 9, 'Describe the picture.'])
    answers, records, scores = json.loads(first.out)
    rows = [{'question': f'Who is {n}?', 'answer': 'x'} for n in range(5)]
    assert records == evaluate(model, rows, max_new_tokens=3, batch=2).answers
    assert len((tmp_path / 'answers.jsonl').read_text().splitlines()) == 6
    np.testing.assert_allclose(scores, vj.choose(model, 'Who?', ['A dog', 'Two people']).scores, atol=1e-4)
    for tokens, settings in zip(answers, SETTINGS, strict=True):
        alone = vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=6, **settings)
        assert np.array_equal(tokens, alone.tokens)
