"""Checkpoints are complete or absent; the last few and the best are kept; a folder has one run at a time."""

import contextlib
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.optimizers import optimizer
from vipllava_jax.messages import CheckpointError
from vipllava_jax.training.checkpoints import check_run_unlocked, lock_run, open_checkpoints
from vipllava_jax.training.step import TrainState, init_state


@pytest.fixture
def state() -> TrainState:
    params = {'llama': {'embed': {'w': jnp.ones((300, 200))}, 'norm': {'w': jnp.ones(3, jnp.bfloat16)}}}
    return init_state(params, optimizer(1e-3, 10))


def shapes(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def test_a_saved_state_is_unaffected_by_donation(tmp_path, state):
    forward = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state_shapes = shapes(state)
    with open_checkpoints(tmp_path, 9) as checkpoints:
        for step in range(5):
            checkpoints.save(step, state, None)
            state = jax.block_until_ready(forward(state))
        checkpoints.wait()
        assert checkpoints.steps() == [0, 1, 2, 3, 4]
    with open_checkpoints(tmp_path, 9) as checkpoints:
        for step in range(5):
            restored = checkpoints.restore(step, state_shapes)
            assert jax.tree.structure(restored) == jax.tree.structure(state)
            assert isinstance(restored.optimizer[1][0], optax.ScaleByAdamState)
            assert [x.dtype for x in jax.tree.leaves(restored)] == [x.dtype for x in jax.tree.leaves(state)]
            assert int(restored.step) == step
            np.testing.assert_array_equal(restored.params['llama']['embed']['w'], step + 1)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path, state):
    with open_checkpoints(tmp_path, 2) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, state, 2 if step >= 2 else None)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6, 7]
        checkpoints.save(8, state, 8)
        assert {2, 6, 7} <= {*checkpoints.steps()}  # while writing may still fail
        checkpoints.wait()
        assert checkpoints.steps() == [7, 8]


def test_incomplete_checkpoints_are_removed(tmp_path, state):
    with open_checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, state, None)
    (tmp_path / '2.orbax-checkpoint-tmp' / 'd').mkdir(parents=True)
    (tmp_path / '.deleted-0').mkdir()
    (tmp_path / 'thesis').mkdir()  # a folder of the user, which must be kept
    with open_checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.steps() == [1]
    assert {path.name for path in tmp_path.iterdir()} == {'1', 'thesis'}


def test_a_different_or_damaged_checkpoint_is_an_error(tmp_path, state):
    other = init_state({'llama': {'norm': {'w': jnp.ones(3)}}}, optimizer(1e-3, 10))
    with open_checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, state, None)
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r'1: not a state of this run, or damaged'):
            checkpoints.restore(1, shapes(other))
        (tmp_path / '1' / '_METADATA').unlink()
        (tmp_path / '1' / 'manifest.ocdbt').unlink()
        with pytest.raises(CheckpointError, match=r'1: not a state of this run, or damaged'):
            checkpoints.restore(1, shapes(state))


def test_an_unwritable_folder_is_an_error(tmp_path, state):
    with open_checkpoints(tmp_path / 'run', 2) as checkpoints:
        (tmp_path / 'run').rmdir()
        (tmp_path / 'run').write_text('')
        with pytest.raises((CheckpointError, OSError)):  # immediately or in `wait`
            (checkpoints.save(1, state, None), checkpoints.wait())


@contextlib.contextmanager
def files_of_at_most(size):
    """Limits the size of files, so that writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_no_checkpoint_and_is_reported_once(tmp_path, capfd):
    params = {'llama': {f'layers_{n}': {'up': {'w': jnp.full((100, 200), n)}} for n in range(24)}}
    many = init_state(params, optimizer(1e-3, 10))
    for _ in range(2):
        with open_checkpoints(tmp_path, 2) as checkpoints:
            if not checkpoints.steps():
                checkpoints.save(1, many, None)
                checkpoints.wait()
            with files_of_at_most(20_000), pytest.raises(OSError, match='File too large') as error:
                (checkpoints.save(2, many, None), checkpoints.wait())
            assert error.value.filename == str(tmp_path / '2')
        assert [path.name for path in tmp_path.iterdir()] == ['1']
    assert 'Event loop' not in capfd.readouterr().err
    with open_checkpoints(tmp_path, 2) as checkpoints:  # with enough space again
        checkpoints.save(2, many, None)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        assert int(checkpoints.restore(1, shapes(many)).step) == 0


def test_a_folder_has_one_run_at_a_time(tmp_path):
    imported = 'import pathlib; from vipllava_jax.training.checkpoints import check_run_unlocked, lock_run'
    folder = f'pathlib.Path({str(tmp_path)!r})'
    for code in (f'with lock_run({folder}): pass', f'check_run_unlocked({folder})'):
        command = [sys.executable, '-c', f'{imported}\n{code}']
        with lock_run(tmp_path):
            done = subprocess.run(command, capture_output=True, text=True)
        assert 'another process is training there' in done.stderr
        assert subprocess.run(command).returncode == 0


def test_checking_for_another_run_writes_nothing(tmp_path):
    check_run_unlocked(tmp_path)
    check_run_unlocked(tmp_path / 'run')
    assert not any(tmp_path.iterdir())
