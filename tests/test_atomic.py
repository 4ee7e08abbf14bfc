"""New folders are placed atomically, through links, and by one process at a time."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vipllava_jax import atomic
from vipllava_jax.folders import check_no_other_files, new_folder
from vipllava_jax.messages import CheckpointError

ROOT = Path(__file__).parents[1]
CHILD = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path; from vipllava_jax.folders import new_folder
from vipllava_jax.signals import end_cleanly
end_cleanly()
with new_folder(Path(sys.argv[1]), 0, lambda folder: True, True) as partial:
    (partial / 'x').write_text('of the child'); print('started', flush=True); sys.stdin.read()
"""


def child(place: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, '-c', CHILD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'started\n'
    return process


def write(place: Path, text: str = 'new', overwrite: bool = False, ours: bool = True) -> None:
    with new_folder(place, 0, lambda folder: ours, overwrite) as partial:
        (partial / 'x').write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize('target', ['empty', 'missing', 'deep/missing', 'full'])
@pytest.mark.parametrize('absolute', [False, True])
def test_the_target_of_a_link_is_written_and_the_link_stays(tmp_path, target, absolute):
    real = tmp_path / target
    if target in ('empty', 'full'):
        real.mkdir()
    if target == 'full':
        (real / 'x').write_text('old')
    (tmp_path / 'link').symlink_to(real if absolute else target)
    (tmp_path / 'second').symlink_to('link')
    write(tmp_path / 'second', overwrite=target == 'full')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'second').is_symlink()
    assert not real.is_symlink()
    assert (real / 'x').read_text() == 'new'
    assert names(tmp_path) == {'link', 'second', target.split('/')[0]}


def test_a_link_to_an_existing_folder_or_to_itself_is_refused(tmp_path):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'letter').touch()
    (tmp_path / 'link').symlink_to('full')
    (tmp_path / 'loop').symlink_to('loop')
    (tmp_path / 'file').touch()
    (tmp_path / 'to file').symlink_to('file')
    for name, expected in (
        ('link', 'full: exists; choose another folder'),
        ('loop', 'loop: a link that leads to itself'),
        ('to file', 'file: exists; choose'),
    ):
        with pytest.raises(CheckpointError, match=expected):
            write(tmp_path / name)
    with pytest.raises(CheckpointError, match='exists, and is not a model that vipllava wrote'):
        write(tmp_path / 'link', overwrite=True, ours=False)
    assert names(tmp_path / 'full') == {'letter'}


def test_the_current_folder_can_be_written(tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    write(Path('.'))
    assert (tmp_path / 'here' / 'x').read_text() == 'new'


def test_a_mount_point_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, 'ismount', lambda path: Path(path) == tmp_path / 'volume')
    (tmp_path / 'volume').mkdir()
    with pytest.raises(CheckpointError, match='volume: a mount point, .* choose a folder in it'):
        write(tmp_path / 'volume')
    write(tmp_path / 'volume' / 'model')


def test_the_second_of_two_writers_is_refused_at_its_start(tmp_path):
    (tmp_path / 'link').symlink_to('model')
    process = child(tmp_path / 'model')
    for place in ('model', 'link', f'../{tmp_path.name}/model', './model'):
        with pytest.raises(CheckpointError, match='model: another process is writing there'):
            new_folder(tmp_path / place, 0, lambda folder: True, True).__enter__()
    process.communicate('')
    assert (tmp_path / 'model' / 'x').read_text() == 'of the child'
    write(tmp_path / 'model', overwrite=True)
    assert (tmp_path / 'model' / 'x').read_text() == 'new'
    assert names(tmp_path) == {'link', 'model'}


def test_two_threads_cannot_write_the_same_folder(tmp_path):
    started, end = threading.Event(), threading.Event()

    def first() -> None:
        with new_folder(tmp_path / 'model', 0, lambda folder: False, False):
            started.set()
            end.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    started.wait(10)
    with pytest.raises(CheckpointError, match='another process is writing there'):
        write(tmp_path / 'model')
    end.set()
    thread.join()
    assert names(tmp_path) == {'model'}


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_target_does_not_change_if_the_process_is_killed(tmp_path, number):
    write(tmp_path / 'model', 'old')
    process = child(tmp_path / 'model')
    process.send_signal(number)
    assert process.wait(10) == -number
    process.stdin.close()
    process.stdout.close()
    assert (tmp_path / 'model' / 'x').read_text() == 'old'
    assert number == signal.SIGKILL or names(tmp_path) == {'model'}
    write(tmp_path / 'model', overwrite=True)
    assert (tmp_path / 'model' / 'x').read_text() == 'new'
    assert names(tmp_path) == {'model'}


def test_replacing_is_atomic(tmp_path, monkeypatch):
    """With two renames, a process that ends between them would leave no model."""
    write(tmp_path / 'model', 'old')
    monkeypatch.setattr(Path, 'rename', None)
    write(tmp_path / 'model', overwrite=True)
    assert (tmp_path / 'model' / 'x').read_text() == 'new'
    assert names(tmp_path) == {'model'}


def test_without_atomic_exchange_a_failed_replacement_is_undone(tmp_path, monkeypatch):
    write(tmp_path / 'model', 'old')
    monkeypatch.setattr(atomic, 'exchange', lambda one, other: False)
    write(tmp_path / 'model', 'new', overwrite=True)
    assert (tmp_path / 'model' / 'x').read_text() == 'new'
    assert names(tmp_path) == {'model'}
    rename, left = Path.rename, [1]

    def fails(path, target):
        if not left[0]:
            left[0] = -1
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, 'rename', fails)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'model', 'newer', overwrite=True)
    monkeypatch.setattr(Path, 'rename', rename)
    assert (tmp_path / 'model' / 'x').read_text() == 'new'
    assert names(tmp_path) == {'model'}


def test_a_folder_moved_aside_by_a_dead_process_is_restored(tmp_path):
    aside = tmp_path / '.model.partial-999999-replaced'
    aside.mkdir()
    (aside / 'x').write_text('old')
    (tmp_path / '.model.partial-999999').mkdir()
    with pytest.raises(CheckpointError, match='exists; choose another folder'):
        write(tmp_path / 'model')
    assert names(tmp_path) == {'model'}
    assert (tmp_path / 'model' / 'x').read_text() == 'old'


def test_similar_names_are_not_removed(tmp_path):
    kept = {'.model.partial-notes', '.model.partial-1.txt', '.model.partial-1-replaced-x', '.model.partial-2'}
    for name in kept - {'.model.partial-2'}:
        (tmp_path / name).mkdir()
    (tmp_path / '.model.partial-2').touch()
    (tmp_path / '.model.partial-3').symlink_to('.model.partial-notes')
    write(tmp_path / 'model')
    assert names(tmp_path) == kept | {'.model.partial-3', 'model'}


def test_new_parent_folders_are_removed_after_a_failure(tmp_path):
    started = new_folder(tmp_path / 'a' / 'b' / 'model', 0, lambda folder: False, False)
    started.__enter__()
    assert not started.__exit__(ValueError, ValueError('no'), None)
    assert not names(tmp_path)


def test_folders_with_other_files_are_not_overwritten(tmp_path):
    model = tmp_path / 'model'
    check_no_other_files(model, ('a', '*.bin'))
    model.mkdir()
    (model / 'a').touch()
    (model / 'x.bin').touch()
    check_no_other_files(model, ('a', '*.bin'))
    (model / 'le\x1btter').touch()
    with pytest.raises(CheckpointError, match=r'model: holds le\\x1btter, which .* would be lost'):
        check_no_other_files(model, ('a', '*.bin'))
