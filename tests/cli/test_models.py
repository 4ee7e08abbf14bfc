"""The commands read each file of a model once, although they check it long before they load it."""

from collections import Counter

import pytest

from vipllava_jax import files
from vipllava_jax.convert import torch_files


@pytest.fixture
def reads(monkeypatch):
    """Counts, by the file's name, how often a safetensors header or a JSON file is read."""
    counts: Counter[str] = Counter()

    def counted(read):
        def wrapper(path, *args, **kwargs):
            counts[path.name] += 1
            return read(path, *args, **kwargs)

        return wrapper

    monkeypatch.setattr(torch_files, 'read_safetensors', counted(torch_files.read_safetensors))
    monkeypatch.setattr(files, 'read_bytes', counted(files.read_bytes))
    return counts


def test_ask_reads_each_header_of_a_pytorch_folder_once(vipllava, source, reads):
    shards = {path.name: 1 for path in source.glob('*.safetensors')}
    assert len(shards) > 4
    ran = vipllava('ask', '--model', source, '--max-new-tokens', 2, 'hi')
    assert ran.code == 0, ran.err
    assert {name: count for name, count in reads.items() if name.endswith('.safetensors')} == shards
    assert reads['model.safetensors.index.json'] == 1
    assert reads['config.json'] == 2  # for the model and for the processor


def test_ask_reads_the_manifest_of_a_converted_folder_once(vipllava, folder, reads):
    ran = vipllava('ask', '--model', folder, '--max-new-tokens', 2, 'hi')
    assert ran.code == 0, ran.err
    assert reads['vipllava.json'] == 1
    assert reads['config.json'] == 2  # for the model and for the processor
