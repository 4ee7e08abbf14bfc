"""Checks that folders can be read and written, in another process: a network file system may block."""

import errno
from pathlib import Path

from vipllava_jax.device_kinds import gib
from vipllava_jax.doctor.check import Check, NoAnswer, ask, failed, ok

LITTLE = 1 << 30  # bytes free below which a disk is reported as full
SLOW_DISK = 'the disk or network file system does not answer: look at its server, or use another folder'
ADVICE = {
    errno.ENOSPC: 'the disk is full: delete files',
    errno.EDQUOT: 'your quota is used up: delete files',
    errno.EROFS: 'the file system is read-only',
    errno.EACCES: 'you may not write there: change the permissions',
    errno.EPERM: 'you may not write there: change the permissions',
}


def check_writable(name: str, folder: Path, seconds: float, elsewhere: str) -> Check:
    """Whether files can be written to a folder; `elsewhere` says how to choose another one."""
    if folder.exists() and not folder.is_dir():
        return failed(name, f'{folder}: not a folder', elsewhere)
    try:
        found = ask('write', str(folder), seconds=seconds)
    except NoAnswer as error:
        return failed(name, f'{folder}: {error}', f'{SLOW_DISK}; {elsewhere}')
    if 'error' in found:
        why = ADVICE.get(found['code'])
        advice = f'{why}; {elsewhere}' if why else elsewhere
        return failed(name, f'{folder}: cannot be written ({found["error"]})', advice)
    text = f'{folder}: writable, {found["rate"] / 1e6:,.0f} MB/s, {gib(found["free"])} are free'
    if not found['same']:
        return failed(name, f'{folder}: what was written was not read back', elsewhere)
    if found['free'] < LITTLE:
        return failed(name, text, f'the disk is nearly full: delete files; {elsewhere}')
    return ok(name, text, **found)


def check_readable(name: str, folder: Path, seconds: float) -> Check:
    """Whether the files of a folder can be read."""
    try:
        found = ask('read', str(folder), seconds=seconds)
    except NoAnswer as error:
        return failed(name, f'{folder}: {error}', SLOW_DISK)
    if 'error' in found:
        return failed(
            name, f'{folder}: cannot be read ({found["error"]})', 'change the permissions of its files'
        )
    if not found['files']:
        return failed(name, f'{folder}: holds no files', 'give the folder of a checkpoint')
    text = f'{folder}: {found["files"]} files, {gib(found["bytes"])}, read at {found["rate"] / 1e9:,.1f} GB/s'
    return ok(name, text, **found)
