"""The files of a processor, and what they say about images."""

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


def read_image_settings(
    folder: Path, processor_config: dict[str, Any], model_config: dict[str, Any]
) -> ImageSettings:
    """The settings in processor_config.json, preprocessor_config.json or, of the authors, config.json.

    Raises CheckpointError for an invalid field, and FileNotFoundError if no file has the settings.
    """
    name, fields = 'processor_config.json', processor_config.get('image_processor')
    if fields is None:
        name = 'preprocessor_config.json'
        fields = read_json(folder / name, optional=True)
    if not isinstance(fields, dict):
        raise CheckpointError(f'{folder / name}: image_processor: expected an object, found {brief(fields)}')
    if fields:
        return ImageSettings.from_fields(fields, str(folder / name))
    if 'mm_vision_tower' in model_config:
        return ImageSettings(fit='pad' if model_config.get('image_aspect_ratio') == 'pad' else 'crop')
    raise FileNotFoundError(f"no {name} in {folder}: copy it there from the checkpoint's repository")


def read_patch_size(
    folder: Path, processor_config: dict[str, Any], model_config: dict[str, Any], side: int
) -> int:
    """The patch size in processor_config.json, or else in config.json, or else 14, the most common one."""
    vision = model_config.get('vision_config')
    vision_patch = vision.get('patch_size') if isinstance(vision, dict) else None
    patch = processor_config.get('patch_size') or vision_patch or 14
    if type(patch) is not int or not 1 <= patch <= side:
        raise CheckpointError(
            f'{folder}: patch_size: expected a whole number from 1 to {side}, the side of an image, '
            f'found {brief(patch)}'
        )
    return patch
