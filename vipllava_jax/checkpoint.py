"""Our own folder of a model: its params as Orbax writes them, its config, and the files of its processor."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vipllava_jax.config import Config, from_hugging_face

MARK = 'vipllava.json'


class CheckpointError(ValueError):
    """What is wrong with a checkpoint, in one line that names the file and says what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f'{path}: not JSON: {error}') from None
    if not isinstance(data, dict):
        raise CheckpointError(f'{path}: a JSON object expected, {type(data).__name__} found')
    return data


def read_config(folder: Path) -> Config:
    """The config of a folder with a config.json, ours or a PyTorch checkpoint's."""
    generation = folder / 'generation_config.json'
    data = read_json(folder / 'config.json')
    try:
        return from_hugging_face(data, read_json(generation) if generation.exists() else None)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{folder / "config.json"}: {error}') from None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    return (folder / MARK).exists()


def listing(folder: Path) -> str:
    """What lies in a folder, in a few words, for an error."""
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot be read: {error.strerror}') from None
    return ', '.join(found[:20]) + (', …' if len(found) > 20 else '') if found else 'nothing'


def nested(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """('llama/norm/w', leaf), … -> {'llama': {'norm': {'w': leaf}}, …}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        *parents, last = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
