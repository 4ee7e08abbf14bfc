import io
import sys
from pathlib import Path
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
    """Runs the command in this process as from a shell, with an empty or a given stdin."""

    def run(*args: object, stdin: str | bytes = '') -> Ran:
        monkeypatch.setattr(sys, 'argv', ['vipllava', *map(str, args)])
        stream = io.StringIO(stdin) if isinstance(stdin, str) else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr(sys, 'stdin', stream)
        with monkeypatch.context() as patch:
            patch.setenv('VIPLLAVA_COMPILATION_CACHE', 'off')  # jax has been set up before
            with pytest.raises(SystemExit) as end:
                cli.run()
        return Ran(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    Image.new('RGB', (90, 60), (10, 120, 200)).save(path)
    return path


@pytest.fixture(scope='session')
def adapter(folder, tmp_path_factory) -> Path:
    """A nonzero adapter of the tiny model."""
    from tests.training.test_lora import trained
    from vipllava_jax.convert.adapter_export import save_adapter
    from vipllava_jax.loading import load

    params, cfg, *_ = load(folder, fuse=False)
    target = tmp_path_factory.mktemp('adapters') / 'adapter'
    save_adapter(target, trained(params, cfg), cfg)
    return target
