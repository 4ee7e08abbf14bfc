"""Converting a PyTorch folder gives a complete folder of ours, or leaves nothing behind."""

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vipllava_jax import checkpoint, folders
from vipllava_jax.arrays import nested
from vipllava_jax.convert.table import leaves
from vipllava_jax.convert.to_flax import convert, plan_conversion, stream
from vipllava_jax.messages import CheckpointError


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def same(a: Path, b: Path) -> bool:
    """Whether two folders of ours have the same contents."""
    x, y = dict(checkpoint.open(a).stream()), dict(checkpoint.open(b).stream())
    return x.keys() == y.keys() and all(x[path].tobytes() == y[path].tobytes() for path in x)


def test_the_new_folder_is_self_contained(source, folder, tmp_path):
    calls = []
    report = convert(source, tmp_path / 'new' / 'model', progress=lambda *call: calls.append(call))
    assert same(tmp_path / 'new' / 'model', folder)
    kept = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / 'new' / 'model').iterdir()} == kept
    assert 'tokenizer.json' in kept
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert calls[-1][:2] == (report.size, report.size)
    assert len(calls) == report.tensors == len(list(leaves(checkpoint.open(folder).cfg)))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_weights_are_cast_to_the_dtype(source, tmp_path, dtype):
    convert(source, tmp_path / 'model', dtype=dtype)
    exact = dict(stream(plan_conversion(source)))
    for path, x in checkpoint.open(tmp_path / 'model').stream():
        assert x.dtype == dtype
        assert x.tobytes() == np.asarray(exact[path]).astype(x.dtype).tobytes(), path


def test_only_float_dtypes_are_accepted(source, tmp_path):
    with pytest.raises(CheckpointError, match='int8: not a dtype .* float32, float16, bfloat16'):
        convert(source, tmp_path / 'model', dtype='int8')


def test_existing_folders_are_not_overwritten(source, folder, tmp_path):
    (tmp_path / 'letters').mkdir()
    (tmp_path / 'letters' / 'from grandmother').touch()
    (tmp_path / 'file').touch()
    for target, message in (
        (source, 'is the same as, lies in, or contains'),
        (source / 'inside', 'is the same as, lies in, or contains'),
        (source.parent, 'is the same as, lies in, or contains'),
        (tmp_path / 'letters', 'exists; choose another folder'),
        (tmp_path / 'file', 'exists; choose another folder'),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(source, target)
    for name in ('letters', 'file'):
        with pytest.raises(CheckpointError, match='exists, and is not a model that vipllava wrote'):
            convert(source, tmp_path / name, overwrite=True)
    assert (tmp_path / 'letters' / 'from grandmother').exists()


def test_an_empty_folder_is_used_and_a_model_can_be_replaced(source, folder, tmp_path):
    (tmp_path / 'model').mkdir()
    convert(source, tmp_path / 'model')
    with pytest.raises(CheckpointError, match='exists'):
        convert(source, tmp_path / 'model', dtype='float16')
    convert(source, tmp_path / 'model', dtype='float16', overwrite=True)
    assert {x.dtype.name for _, x in checkpoint.open(tmp_path / 'model').stream()} == {'float16'}
    assert [path.name for path in tmp_path.iterdir()] == ['model']


def test_a_shard_that_ends_early_leaves_nothing(source, tmp_path):
    broken = shutil.copytree(source, tmp_path / 'broken')
    shard = sorted(broken.glob('*-of-*'))[-1]
    plan = plan_conversion(broken)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f'{shard}: truncated'):
        convert(broken, tmp_path / 'model')
    with pytest.raises(CheckpointError, match=f'{shard}: became shorter while it was read'):
        checkpoint.save(tmp_path / 'model', _shapes(plan), plan.cfg, leaves=stream(plan))
    assert [path.name for path in tmp_path.iterdir()] == ['broken']


def _shapes(what) -> dict:
    import jax

    shapes = ((leaf.path, jax.ShapeDtypeStruct(leaf.shapes[1], 'float32')) for leaf, _ in what.pairs)
    return nested(shapes)


def test_a_full_disk_is_reported_before_the_work(source, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(folders.shutil, 'disk_usage', lambda path: free)
    size = sum(tensor.nbytes for _, tensor in plan_conversion(source).pairs)
    message = f'model: takes {size / 1e6:.2f} MB, {(size - 300_000) / 1e6:.2f} MB more than the disk has free'
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / 'model')
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, sys
from pathlib import Path
from vipllava_jax.convert.to_flax import convert
from vipllava_jax.convert.to_torch import export
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for work, source in ((convert, sys.argv[1]), (export, sys.argv[2])):
    try:
        work(Path(source), Path(sys.argv[3]))
    except ValueError as error:
        print(error)
"""


def child(code: str, *args: object, **settings) -> subprocess.Popen:
    """Runs Python code with our packages in a separate process."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        '-c',
        f'import sys; sys.path[:0] = {[str(root), str(root / "convert")]}\n{code}',
    ]
    return subprocess.Popen([*command, *map(str, args)], stdout=subprocess.PIPE, text=True, **settings)


def test_a_failing_write_leaves_nothing(source, folder, tmp_path):
    """Files are limited to 50 kB, which makes both Orbax and our writer fail."""
    with child(LIMITED, source, folder, tmp_path / 'model', stderr=subprocess.PIPE) as process:
        out, noise = process.communicate(timeout=60)
    lines = out.splitlines()
    assert len(lines) == 2, noise
    for line in lines:
        assert line.startswith(f'{tmp_path}/')
        assert 'cannot be written: ' in line
        assert 'File too large' in line
    assert not noise
    assert not list(tmp_path.iterdir())


KILLED = """
import sys
from pathlib import Path
from vipllava_jax.convert.to_flax import convert
convert(*map(Path, sys.argv[1:]), progress=lambda done, total, name: print(done, total, flush=True))
print('done', flush=True)
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_or_everything(source, folder, tmp_path):
    before = contents(source)
    chance = random.Random(0)
    model, finished = tmp_path / 'model', 0
    for part in (0.0, 0.5, 0.9, 1.0, 1.0, 1.0):
        with child(KILLED, source, model) as process:
            for line in process.stdout:
                if line == 'done\n' or int(line.split()[0]) >= part * int(line.split()[1]):
                    break
            time.sleep(chance.uniform(0, 0.2) if part == 1 else chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        if model.exists():
            assert same(model, folder)
            finished += 1
            shutil.rmtree(model)
        assert contents(source) == before
    assert finished < 6
    convert(source, model)
    assert same(model, folder)
    assert [path.name for path in tmp_path.iterdir()] == ['model']
