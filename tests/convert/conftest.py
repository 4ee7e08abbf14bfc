"""What the tests of both directions share."""

from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def source(folder, tmp_path_factory) -> Path:
    """A PyTorch folder in several shards, with a tokenizer, made without PyTorch."""
    from vipllava_convert.to_torch import export

    target = tmp_path_factory.mktemp('torch') / 'source'
    export(folder, target, max_shard_bytes=100_000)
    return target
