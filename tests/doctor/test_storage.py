"""Folders are written and read in another process, and nothing is left in them."""

import errno
import os

import pytest

from vipllava_jax.doctor import storage
from vipllava_jax.doctor.check import NoAnswer
from vipllava_jax.doctor.storage import check_readable, check_writable

ELSEWHERE = 'choose another folder'


def test_a_writable_folder_is_ok_and_left_as_it_was(tmp_path):
    (tmp_path / 'mine').write_text('kept')
    found = check_writable('output', tmp_path, 20, ELSEWHERE)
    assert found.status == 'ok', found
    assert 'writable' in found.found
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


def test_a_folder_that_does_not_exist_is_not_created(tmp_path):
    found = check_writable('output', tmp_path / 'a' / 'b', 20, ELSEWHERE)
    assert found.status == 'ok', found
    assert not [*tmp_path.iterdir()]


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    found = check_writable('output', tmp_path / 'file', 20, ELSEWHERE)
    assert (found.status, found.advice) == ('FAIL', ELSEWHERE)
    assert 'not a folder' in found.found


def test_a_folder_that_refuses_files_says_what_to_do():
    found = check_writable('compiled programs', storage.Path('/proc/self'), 20, ELSEWHERE)
    assert found.status == 'FAIL'
    assert 'cannot be written' in found.found
    assert ELSEWHERE in found.advice
    assert '.vipllava-doctor' not in found.found


@pytest.mark.parametrize(
    ('code', 'advice'),
    [
        (errno.ENOSPC, 'the disk is full'),
        (errno.EDQUOT, 'your quota is used up'),
        (errno.EROFS, 'read-only'),
        (errno.EACCES, 'change the permissions'),
        (errno.EIO, ELSEWHERE),
    ],
)
def test_each_error_of_the_system_has_advice(tmp_path, monkeypatch, code, advice):
    monkeypatch.setattr(storage, 'ask', lambda *_, **__: {'error': os.strerror(code), 'code': code})
    found = check_writable('output', tmp_path, 20, ELSEWHERE)
    assert found.status == 'FAIL'
    assert advice in found.advice


def test_a_file_system_that_does_not_answer_is_reported(tmp_path, monkeypatch):
    def blocked(*_, **__):
        raise NoAnswer('no answer within 20 s')

    monkeypatch.setattr(storage, 'ask', blocked)
    for found in (check_writable('output', tmp_path, 20, ''), check_readable('model', tmp_path, 20)):
        assert found.status == 'FAIL'
        assert 'does not answer' in found.advice


def test_a_nearly_full_disk_is_reported(tmp_path, monkeypatch):
    answer = {'folder': str(tmp_path), 'same': True, 'rate': 1e8, 'free': 5e6}
    monkeypatch.setattr(storage, 'ask', lambda *_, **__: answer)
    found = check_writable('output', tmp_path, 20, ELSEWHERE)
    assert (found.status, 'nearly full' in found.advice) == ('FAIL', True)
    monkeypatch.setattr(storage, 'ask', lambda *_, **__: {**answer, 'same': False, 'free': 1e12})
    assert 'not read back' in check_writable('output', tmp_path, 20, ELSEWHERE).found


def test_the_files_of_a_model_are_read(tmp_path):
    assert 'holds no files' in check_readable('model', tmp_path, 20).found
    (tmp_path / 'a').write_bytes(bytes(3 << 20))
    found = check_readable('model', tmp_path, 20)
    assert found.status == 'ok'
    assert found.details['read'] == 3 << 20
    (tmp_path / 'broken').symlink_to(tmp_path / 'nowhere')  # not a file: left out
    assert check_readable('model', tmp_path, 20).status == 'ok'
