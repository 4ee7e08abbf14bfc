"""The callable for Ray Data in the documentation, called as Ray calls it."""

import runpy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np

import vipllava_jax
from tests.batch_files.fakes import FakeEngine
from tests.test_docs import ROOT

SCRIPT = str(ROOT / 'docs/pods/ray_data.py')


class Dataset:
    """Three rows in two batches of columns."""

    def __init__(self):
        self.results = []

    def map_batches(self, make, fn_constructor_args, batch_size, num_gpus, concurrency):
        call = make(*fn_constructor_args)
        texts = np.array(['What?', 'Why?', None], object)
        for part in (slice(0, 2), slice(2, 3)):
            self.results.append(call({'id': np.arange(3)[part], 'prompt': texts[part]}))
        call.engine.__exit__()
        return self

    def write_json(self, output):
        assert output == 'answers'


def test_the_callable_answers_batches_of_columns(monkeypatch):
    monkeypatch.setattr(vipllava_jax, 'load', lambda name: name, raising=False)
    module, dataset = ModuleType('vipllava_jax.engine.engine'), Dataset()
    module.Engine = lambda model: FakeEngine()
    monkeypatch.setitem(sys.modules, 'vipllava_jax.engine.engine', module)
    ray = ModuleType('ray')
    ray.data = SimpleNamespace(read_json=lambda rows, lines: dataset)
    monkeypatch.setitem(sys.modules, 'ray', ray)
    monkeypatch.setattr(sys, 'argv', ['ray_data.py', 'demo', '.', 'rows.jsonl', 'answers'])
    runpy.run_path(SCRIPT, run_name='__main__')
    first, second = dataset.results
    assert dict(zip(first['id'], first['answer'], strict=True)) == {'0': 'What?', '1': 'Why?'}
    assert second['id'] == ['2']
    assert 'there is no "prompt"' in second['error'][0]
