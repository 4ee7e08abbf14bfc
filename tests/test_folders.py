"""Folders are written completely or not at all."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vipllava_jax import folders
from vipllava_jax.folders import check_apart, new_folder
from vipllava_jax.messages import CheckpointError


def never(folder: Path) -> bool:
    return False


def test_the_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / 'a' / 'model', 0, never, False) as partial:
        (partial / 'x').write_text('x')
        assert not (tmp_path / 'a' / 'model').exists()
    assert [path.name for path in (tmp_path / 'a').rglob('*')] == ['model', 'x']


def fail(folder: Path, error: BaseException, size: int = 0) -> None:
    with new_folder(folder, size, never, False) as partial:
        (partial / 'x').write_bytes(bytes(10_000))
        raise error


@pytest.mark.parametrize('error', [KeyboardInterrupt(), ValueError('no'), CheckpointError('no')])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        fail(tmp_path / 'model', error)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_with_the_missing_bytes(tmp_path, monkeypatch):
    free = iter([10**9, 1000])
    monkeypatch.setattr(folders.shutil, 'disk_usage', lambda path: type('Usage', (), {'free': next(free)}))
    with pytest.raises(CheckpointError, match=r'model: the disk is full, 0\.30 MB are missing'):
        fail(tmp_path / 'model', OSError(errno.ENOSPC, 'No space left on device'), 311_000)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_target_is_an_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='model: cannot be written: (Not a directory|File exists)'):
        fail(tmp_path / 'file' / 'model', ValueError())


def test_leftovers_are_removed_unless_a_process_is_writing(tmp_path):
    code = (
        f'import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n'
        'from pathlib import Path; from vipllava_jax.folders import new_folder\n'
        'with new_folder(Path(sys.argv[1]), 0, lambda folder: False, False) as partial:\n'
        '    (partial / "x").touch(); print(partial.name, flush=True); sys.stdin.read()'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'model')]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        with pytest.raises(CheckpointError, match='model: another process is writing there'):
            fail(tmp_path / 'model', ValueError('mine'))
        assert (tmp_path / name / 'x').exists()
        process.kill()
    (tmp_path / '.model.partial-of-somebody').touch()
    (tmp_path / '.model2.partial-1').mkdir()
    with new_folder(tmp_path / 'model', 0, never, False):
        assert not (tmp_path / name).exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        'model',
        '.model.partial-of-somebody',
        '.model2.partial-1',
    }


def test_a_target_that_appears_meanwhile_is_refused(tmp_path):
    slow = new_folder(tmp_path / 'model', 0, never, False)
    slow.__enter__()
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'x').touch()
    with pytest.raises(CheckpointError, match='model: cannot be written: Directory not empty'):
        slow.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob('*')] == ['model', 'x']


def test_unrelated_folders_are_accepted(tmp_path):
    check_apart(tmp_path / 'a', tmp_path / 'ab')
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    for other in ('a', 'a/b', '.', 'a/../a', 'link', 'link/b'):
        with pytest.raises(CheckpointError):
            check_apart(tmp_path / 'a', tmp_path / other)


def test_folders_are_compared_after_resolving_links(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'link').symlink_to('a')
    check_apart(tmp_path / 'a', tmp_path / 'c')
    for source, target in (
        ('a', 'link'),
        ('a', 'link/b'),
        ('link/b', 'a'),
        ('a', 'a/../a/new'),
        ('link', 'a/x/y'),
    ):
        with pytest.raises(CheckpointError, match='choose another folder'):
            check_apart(tmp_path / source, tmp_path / target)


def test_a_signal_right_after_the_folder_is_created_leaves_nothing(tmp_path):
    code = (
        'import os, shutil, signal, sys; from pathlib import Path\n'
        'from vipllava_jax import folders, signals\n'
        'signals.end_cleanly()\n'
        'shutil.disk_usage = lambda folder: os.kill(os.getpid(), signal.SIGTERM)  # before it yields\n'
        'with folders.new_folder(Path(sys.argv[1]), 0, lambda folder: False, False): pass\n'
    )
    ended = subprocess.run([sys.executable, '-c', code, tmp_path / 'model'], timeout=60)
    assert ended.returncode == -signal.SIGTERM
    assert not any(tmp_path.iterdir())
