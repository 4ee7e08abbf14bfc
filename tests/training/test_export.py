"""The exported result of a run, and what it replaces."""

import pytest

from vipllava_jax.messages import CheckpointError
from vipllava_jax.training.export import check_replaceable


@pytest.mark.parametrize(
    ('name', 'files'),
    [
        ('adapter', ['adapter_model.safetensors', 'adapter_config.json']),
        ('model', ['vipllava.json', 'config.json', 'tokenizer.json', 'chat_template.jinja']),
    ],
)
def test_a_result_with_other_files_in_its_folder_is_not_replaced(tmp_path, name, files):
    target = tmp_path / name
    check_replaceable(target)
    target.mkdir()
    for file in files:
        (target / file).touch()
    check_replaceable(target)
    (target / 'README.md').touch()
    with pytest.raises(CheckpointError, match=f'{name}: holds README.md, which does not belong to a model'):
        check_replaceable(target)
