"""Fixtures of tiny models for several test files: odd sizes, grouped queries, several taps."""

import dataclasses
import gc
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vipllava_jax.compilation import SETTINGS
from vipllava_jax.config import Config, TextConfig, VisionConfig

TINY = Config(
    vision=VisionConfig(image_size=28, patch_size=14, width=32, layers=12, heads=2, mlp=40),
    text=TextConfig(vocab=128, width=48, layers=3, heads=6, kv_heads=2, head_size=8, mlp=56, context=512),
    image_token=126,
    pad=127,
)
# A shallower config, which takes less time to compile, for tests in which depth does not matter.
SMALL = dataclasses.replace(
    TINY,
    vision=dataclasses.replace(TINY.vision, layers=3),
    text=dataclasses.replace(TINY.text, layers=2),
    feature_layers=(-2, -3, 3),
)


CACHE, HASTY = 'VIPLLAVA_COMPILATION_CACHE', 'JAX_DISABLE_MOST_OPTIMIZATIONS'
# Compiling takes most of the time of tests; in older versions of XLA, half of it goes to what these disable.
HASTY_FLAGS = [
    '--xla_cpu_parallel_codegen_split_count=1',
    '--xla_cpu_enable_concurrency_optimized_scheduler=false',
]
if jax.__version_info__ < (0, 11):  # newer versions do not know it
    HASTY_FLAGS.append('--xla_cpu_use_fusion_emitters=false')
# Linux allows a process 65,530 areas of memory, and ends one that needs more. Each program takes several.
MOST_AREAS = 20_000

# in the environment, so that processes that tests start inherit them
os.environ[CACHE] = 'off'
GIVEN_FLAGS = os.environ.get('XLA_FLAGS', '')
if os.environ.setdefault(HASTY, '1') == '1':
    os.environ['XLA_FLAGS'] = ' '.join([*HASTY_FLAGS, GIVEN_FLAGS]).strip()
jax.config.update('jax_num_cpu_devices', 8)  # for meshes; programs without a mesh run on the first one


@pytest.fixture(scope='session', autouse=True)
def programs(request, tmp_path_factory) -> None:
    """Compiles with few optimizations and a cache, because tiny models take longer to compile than to run.

    Commands that tests start share another cache, where killed ones may leave incomplete programs.
    """
    if any(item.get_closest_marker('gates') for item in request.session.items):
        settings: dict[str, Any] = {HASTY.lower(): False}  # these tests examine the compiler's output
        os.environ['XLA_FLAGS'] = GIVEN_FLAGS  # and compilers for other devices need not know the flags
    else:
        place = tmp_path_factory.getbasetemp()
        if 'PYTEST_XDIST_WORKER' in os.environ:
            place = place.parent
        settings = {
            **SETTINGS,
            HASTY.lower(): os.environ[HASTY] == '1',
            'jax_compilation_cache_dir': str(place / 'programs'),
            'jax_persistent_cache_min_compile_time_secs': 0.1,
        }
        os.environ[CACHE] = str(place / 'programs of commands')
    for name, value in settings.items():
        jax.config.update(name, value)


@pytest.fixture(scope='module', autouse=True)
def older_objects(programs) -> None:
    """Leaves what torch and earlier tests hold out of collections, which would take seconds to look at it.

    Compiled programs of earlier tests are freed before they take too many areas of memory.
    """
    if memory_areas() > MOST_AREAS:
        gc.unfreeze()
        jax.clear_caches()
    gc.collect()
    gc.freeze()


def memory_areas() -> int:
    """How many areas of memory this process has; 0 where the system does not tell."""
    try:
        return Path('/proc/self/maps').read_bytes().count(b'\n')
    except OSError:
        return 0


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL


@pytest.fixture(scope='session')
def params(cfg):
    from vipllava_jax.model.params import init

    return init(jax.random.key(0), cfg)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> Path:
    """A converted checkpoint with a tokenizer: everything that `load` and the command need."""
    from tests.makers import write_processor_files
    from vipllava_jax import checkpoint
    from vipllava_jax.model.params import init

    files = tmp_path_factory.mktemp('files')
    image = write_processor_files(files, SMALL.vision.image_size, SMALL.vision.patch_size, vocab=400)
    text = dataclasses.replace(SMALL.text, vocab=400, context=1024)
    cfg = dataclasses.replace(SMALL, text=text, image_token=image, pad=image + 1)
    target = tmp_path_factory.mktemp('models') / 'tiny'
    # With these weights, answers differ and hold no control characters.
    checkpoint.save(target, init(jax.random.key(9), cfg), cfg, files_from=files)
    return target


@pytest.fixture(scope='session')
def source(folder, tmp_path_factory) -> Path:
    """A PyTorch folder in several shards, with a tokenizer, written without PyTorch."""
    from vipllava_jax.convert.to_torch import export

    target = tmp_path_factory.mktemp('torch') / 'source'
    export(folder, target, max_shard_bytes=100_000)
    return target


@pytest.fixture(scope='session')
def demo_model():
    """The bundled model, for tests that need meaningful answers."""
    from vipllava_jax.loading import load

    return load('demo', dtype='float32')
