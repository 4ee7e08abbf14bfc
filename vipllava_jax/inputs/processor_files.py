"""The files of a processor, and the settings for pictures in them."""

from pathlib import Path
from typing import Any

from vipllava_jax.files import read_json
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.messages import CheckpointError, brief

PROCESSOR_FILES = (  # all that a folder needs for Processor.load
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'preprocessor_config.json',
    'processor_config.json',
    'chat_template.json',
    'chat_template.jinja',
)


def settings(folder: Path, own: dict[str, Any], config: dict[str, Any]) -> ImageSettings:
    """Reads processor_config.json, preprocessor_config.json or, in the authors' checkpoints, config.json."""
    name, fields = 'processor_config.json', own.get('image_processor')
    if fields is None:
        name = 'preprocessor_config.json'
        fields = read_json(folder / name, optional=True)
    if not isinstance(fields, dict):
        raise CheckpointError(f'{folder / name}: image_processor: expected an object, found {brief(fields)}')
    if fields:
        return ImageSettings.from_fields(fields, str(folder / name))
    if 'mm_vision_tower' in config:
        return ImageSettings(fit='pad' if config.get('image_aspect_ratio') == 'pad' else 'crop')
    raise FileNotFoundError(f"no {name} in {folder}: copy it there from the checkpoint's repository")


def patch_size(folder: Path, own: dict[str, Any], config: dict[str, Any], side: int) -> int:
    """The patch size in processor_config.json, or else in config.json, or else 14, the most common one."""
    vision = config.get('vision_config')
    of_tower = vision.get('patch_size') if isinstance(vision, dict) else None
    patch = own.get('patch_size') or of_tower or 14
    if type(patch) is not int or not 1 <= patch <= side:
        raise CheckpointError(
            f'{folder}: patch_size {brief(patch)} does not fit pictures of {side} pixels a side'
        )
    return patch
