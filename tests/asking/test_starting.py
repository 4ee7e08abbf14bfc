"""The programs of an engine are compiled while its weights are loaded."""

import re

import jax
import pytest

from vipllava_jax import loading
from vipllava_jax.asking.starting import compile_ahead
from vipllava_jax.engine import engine as module
from vipllava_jax.engine.engine import Engine
from vipllava_jax.generation.model import Model
from vipllava_jax.inputs.processor import Processor

SIZES = {'rows': 2, 'slots': 64, 'long_rows': {128: 1}}


@pytest.fixture
def weights(folder):
    return loading.open(folder)


@pytest.fixture
def processor(folder, weights):
    return Processor.load(folder).for_model(weights.cfg)


@pytest.fixture
def logs_compilations():
    """In all threads, where `jax.log_compiles` would be one of this thread."""
    jax.config.update('jax_log_compiles', True)
    yield
    jax.config.update('jax_log_compiles', False)


def compiled_in(caplog):
    return {*re.findall(r'Compiling jit\((\w+)\)', caplog.text)}


@pytest.mark.slow
def test_what_is_compiled_ahead_is_not_compiled_again(
    weights, processor, caplog, logs_compilations, monkeypatch
):
    seen, programs = [], {'decode_lanes', 'prefill_prompts', 'select_next', 'put_rows', 'read_pictures'}

    def start_alone(model, **options):
        assert programs <= compiled_in(caplog)
        caplog.clear()
        return Engine(model, **options)

    monkeypatch.setattr(module, 'Engine', start_alone)
    with caplog.at_level('WARNING'):
        start = compile_ahead(weights, processor, **SIZES, workers=0)
        model = Model(weights.load(), weights.cfg, processor)
        with start(model, lambda done, total: seen.append((done, total))):
            assert not programs & compiled_in(caplog)
    assert seen[-1][0] == seen[-1][1] > 50
    assert seen == sorted(seen)


def test_sizes_that_are_out_of_range_are_an_error_of_the_engine(weights, processor):
    start = compile_ahead(weights, processor, **{**SIZES, 'rows': 0})
    with pytest.raises(ValueError, match='rows is 0'):
        start(Model(weights.load(), weights.cfg, processor), lambda done, total: None)
