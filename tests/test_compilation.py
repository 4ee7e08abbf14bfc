"""A second start compiles nothing, and problems with the cache folder never prevent an answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vipllava_jax.compilation import FOLDER, MAX_BYTES, delete_old_programs, plain_warning, use_cache

PHOTO = Path(__file__).parent.parent / 'docs' / 'coffee.jpg'
LIMITED = """
import resource, sys
from vipllava_jax.cli import main

limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # the largest file, as if the disk were full then
main()
"""


class Start:
    """Starts `ask` with a separate home folder, each time in another working directory."""

    def __init__(self, model: Path, place: Path):
        self.model, self.place, self.times = model, place, 0
        names = ('HOME', 'XDG_CACHE_HOME', FOLDER, 'VIPLLAVA_COMPILATION_CACHE')
        self.environment = {name: value for name, value in os.environ.items() if name not in names}
        self.environment |= {'HOME': str(place), 'PYTHONPATH': os.pathsep.join(sys.path)}

    def __call__(
        self, *options: object, limit: int = -1, **environment: object
    ) -> subprocess.CompletedProcess:
        self.times += 1
        here = self.place / f'here-{self.times}'
        here.mkdir()
        arguments = [*options, 'ask', '--model', self.model, '--image', PHOTO, '--max-new-tokens', 12, 'hi']
        done = subprocess.run(
            [sys.executable, '-c', LIMITED, str(limit), *map(str, arguments)],
            env={**self.environment, **{name: str(value) for name, value in environment.items()}},
            cwd=here,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done


@pytest.fixture
def start(folder, tmp_path):
    return Start(folder, tmp_path)


def programs(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob('*-cache')}


def damaged(folder: Path) -> list[str]:
    """The programs that jax could not read."""
    from jax._src.compilation_cache import decompress_executable

    found = []
    for path in folder.glob('*-cache'):
        try:
            decompress_executable(path.read_bytes())
        except Exception:
            found.append(path.name)
    return found


@pytest.mark.slow
def test_a_second_start_compiles_nothing(start, tmp_path):
    first = start(XDG_CACHE_HOME=tmp_path / 'caches')
    folder = tmp_path / 'caches' / 'vipllava' / 'programs'
    kept = programs(folder)
    assert {name.split('-')[0] for name in kept} >= {'jit_prefill_batch', 'jit_decode_chunk'}
    moved = folder.rename(tmp_path / 'elsewhere')
    second = start('--compilation-cache', moved)
    assert programs(moved) == kept
    assert (second.stdout, second.stderr) == (first.stdout, '')
    assert not folder.exists()


@pytest.mark.slow
def test_the_default_folder_is_in_the_users_caches(start, tmp_path):
    start(XDG_CACHE_HOME='not/absolute')
    usual = tmp_path / ('Library/Caches' if sys.platform == 'darwin' else '.cache')
    assert programs(usual / 'vipllava' / 'programs')


@pytest.mark.slow
def test_the_cache_can_be_disabled(start, tmp_path):
    start(VIPLLAVA_COMPILATION_CACHE='off', JAX_COMPILATION_CACHE_DIR=tmp_path / 'own')
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


@pytest.mark.slow
def test_an_unwritable_folder_is_reported_once(start, tmp_path):
    (tmp_path / 'file').touch()
    error = start(VIPLLAVA_COMPILATION_CACHE=tmp_path / 'file').stderr
    assert error.startswith(f'vipllava: {tmp_path / "file"}: compiled programs cannot be kept there: ')
    assert error.count('\n') == 1


@pytest.mark.slow
def test_a_full_disk_is_reported_once_and_damaged_programs_are_replaced(start, tmp_path):
    folder = tmp_path / 'programs'
    error = start('--compilation-cache', folder, limit=20_000).stderr
    assert 'File too large' in error
    assert error.count('\n') == 1
    assert damaged(folder)
    assert start('--compilation-cache', folder).stderr == ''
    assert not damaged(folder)
    [path] = folder.glob('jit_prefill_batch-*-cache')
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    assert start('--compilation-cache', folder).stderr == ''
    assert path.stat().st_size > size / 2


WRITING = (
    "Error writing persistent compilation cache entry for 'jit_prefill_batch': OSError: [Errno 28] No space"
)
READING = "Error reading persistent compilation cache entry for 'jit_prefill_batch': ValueError: cut off"


@pytest.fixture
def kept(tmp_path):
    """A folder with two programs of one name, one of another name, and a file that is none."""
    for name in ('jit_prefill_batch-a-cache', 'jit_prefill_batch-b-cache', 'jit_other-c-cache', 'notes'):
        (tmp_path / name).touch()
    return tmp_path


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_program_that_cannot_be_read_is_deleted(kept):
    """With those of its name, because the warning does not say which it is."""
    assert plain_warning(READING, kept, is_ours=True) is None
    assert left(kept) == {'jit_other-c-cache', 'notes'}


def test_a_program_that_cannot_be_written_is_reported(kept):
    before = left(kept)
    assert 'Errno 28' in plain_warning(WRITING, kept, is_ours=True)
    assert left(kept) == before


def test_a_program_without_a_time_of_use_is_deleted_if_the_user_sets_a_limit(kept):
    """jax then stores nothing while a program lacks the file with the time of its last use."""
    before = left(kept)
    missing = f"FileNotFoundError: [Errno 2] No such file or directory: '{kept}/jit_other-c-atime'"
    error = plain_warning(WRITING.partition('OSError')[0] + missing, kept, is_ours=True)
    assert error is None
    assert left(kept) == before - {'jit_other-c-cache'}


HASH = '0123456789abcdef' * 4


def store(folder: Path, name: str, size: int, used: float, written: float = 0.0) -> None:
    """Stores a program as jax does, which was used and written at these times."""
    path = folder / f'jit_{name}-{HASH}-cache'
    path.write_bytes(bytes(size))
    os.utime(path, (used, written))


def names(folder: Path) -> str:
    """The names of the programs that are left."""
    return ''.join(sorted(path.name[4] for path in folder.glob(f'jit_*-{HASH}-cache')))


def test_the_least_recently_used_programs_are_deleted(tmp_path):
    for name, used, written in [('a', 1, 5), ('b', 3, 0), ('c', 6, 0), ('d', 4, 4)]:
        store(tmp_path, name, 100, used, written)
    for most, expected in [(400, 'abcd'), (399, 'acd'), (200, 'ac'), (100, 'c'), (99, '')]:
        delete_old_programs(tmp_path, most)
        assert names(tmp_path) == expected


def test_other_files_are_never_deleted(tmp_path):
    others = ['notes', 'my-cache', f'jit_f-{HASH}-cache.bak', f'jit_f-{HASH[1:]}-cache', '.lockfile']
    for name in others:
        (tmp_path / name).write_bytes(bytes(100))
    (tmp_path / f'jit_folder-{HASH}-cache').mkdir()
    (tmp_path / f'jit_link-{HASH}-cache').symlink_to(tmp_path / 'notes')
    before = left(tmp_path)
    store(tmp_path, 'a', 100, 1)
    delete_old_programs(tmp_path, 0)
    assert left(tmp_path) == before


def test_times_of_use_that_jax_has_written_are_deleted_with_their_programs(tmp_path):
    for n, name in enumerate('ab'):
        store(tmp_path, name, 100, n)
        (tmp_path / f'jit_{name}-{HASH}-atime').write_bytes(bytes(8))
    delete_old_programs(tmp_path, 100)
    assert left(tmp_path) == {f'jit_b-{HASH}-cache', f'jit_b-{HASH}-atime'}


def test_programs_that_other_processes_delete_or_nobody_may_are_passed_over(tmp_path, monkeypatch):
    delete_old_programs(tmp_path / 'none', 0)
    for n, name in enumerate('abc'):
        store(tmp_path, name, 100, n)
    unlink = Path.unlink

    def fails(path, missing_ok=False):
        if path.name.startswith('jit_c'):
            raise PermissionError
        unlink(path, missing_ok)
        if path.name.startswith('jit_a'):
            raise FileNotFoundError

    monkeypatch.setattr(Path, 'unlink', fails)
    delete_old_programs(tmp_path, 0)
    assert names(tmp_path) == 'c'


def test_the_folder_is_reduced_when_a_command_starts(tmp_path):
    """Unless the user has set a limit for jax, or has chosen the folder by its variable."""
    store(tmp_path, 'a', 10, 1)
    os.truncate(tmp_path / f'jit_a-{HASH}-cache', MAX_BYTES + 1)
    use_cache(str(tmp_path), {'JAX_COMPILATION_CACHE_MAX_SIZE': '-1'})
    use_cache(None, {FOLDER: str(tmp_path)})
    assert names(tmp_path) == 'a'
    environment: dict[str, str] = {}
    use_cache(str(tmp_path), environment)
    assert names(tmp_path) == ''
    assert environment['JAX_COMPILATION_CACHE_MAX_SIZE'] == '-1'


@pytest.mark.parametrize('warning', [WRITING, READING])
def test_nothing_is_deleted_in_the_users_folder(kept, warning):
    before = left(kept)
    assert str(kept) in plain_warning(warning, kept, is_ours=False)
    assert left(kept) == before


@pytest.mark.slow
def test_a_full_disk_deletes_nothing_in_the_users_folder(start, kept):
    before = left(kept)
    error = start(
        JAX_COMPILATION_CACHE_DIR=kept, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0, limit=20_000
    ).stderr
    assert 'File too large' in error
    assert before <= left(kept)


def test_an_empty_variable_is_ignored_and_an_empty_option_refused():
    environment = {FOLDER: '', 'XDG_CACHE_HOME': '/caches'}
    assert use_cache(None, environment)
    assert environment[FOLDER] == '/caches/vipllava/programs'
    with pytest.raises(ValueError, match='--compilation-cache is empty'):
        use_cache('', environment)


@pytest.mark.slow
def test_the_command_ignores_an_empty_variable_and_refuses_an_empty_option(start, tmp_path):
    with pytest.raises(AssertionError, match=r'^vipllava: --compilation-cache is empty: [^\n]*\n  \n'):
        start('--compilation-cache', '')
    start(VIPLLAVA_COMPILATION_CACHE='', XDG_CACHE_HOME=tmp_path / 'caches')
    assert programs(tmp_path / 'caches' / 'vipllava' / 'programs')
    assert not [path for here in tmp_path.glob('here-*') for path in here.iterdir()]


def test_the_users_settings_take_precedence():
    environment = {FOLDER: '/own'}
    assert not use_cache(None, environment)
    assert environment == {FOLDER: '/own'}
    assert use_cache('~/mine', environment)
    assert environment[FOLDER] == str(Path.home() / 'mine')
    environment = {'XDG_CACHE_HOME': '/caches', 'JAX_COMPILATION_CACHE_MAX_SIZE': '7'}
    use_cache(None, environment)
    assert environment[FOLDER] == '/caches/vipllava/programs'
    assert environment['JAX_COMPILATION_CACHE_MAX_SIZE'] == '7'


def test_without_a_home_folder_there_is_no_cache(monkeypatch):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(Path, 'home', no_home)
    environment: dict[str, str] = {}
    use_cache(None, environment)
    assert environment == {}


def test_other_warnings_do_not_change(tmp_path):
    assert plain_warning('a mark lies outside', tmp_path, is_ours=True) == 'a mark lies outside'


def test_the_library_does_not_change_the_users_cache(tmp_path):
    code = 'import jax, vipllava_jax as vj; vj.generate, vj.load; print(jax.config.jax_compilation_cache_dir)'
    environment = {**os.environ, 'HOME': str(tmp_path), 'XDG_CACHE_HOME': str(tmp_path)}
    environment.pop('VIPLLAVA_COMPILATION_CACHE')
    environment['PYTHONPATH'] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.stdout == 'None\n', done.stderr
