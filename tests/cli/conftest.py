import io
import sys
from typing import NamedTuple

import pytest
from PIL import Image

from vipllava_jax import cli


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def vipllava(monkeypatch, capsys):
    """Runs the command in this process, as if from a shell, on an empty or given stdin."""

    def run(*args: object, stdin: str = '') -> Ran:
        monkeypatch.setattr(sys, 'argv', ['vipllava', *map(str, args)])
        monkeypatch.setattr(sys, 'stdin', io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            cli.run()
        return Ran(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    Image.new('RGB', (90, 60), (10, 120, 200)).save(path)
    return path
