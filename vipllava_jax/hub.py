"""Downloads models from the Hugging Face Hub into its cache."""

import re
from pathlib import Path

from vipllava_jax import checkpoint
from vipllava_jax.convert import torch_files
from vipllava_jax.files import read_json
from vipllava_jax.messages import CheckpointError, printable

HUB_PART = r'\w(?:[\w.-]{0,94}\w)?'  # at most 96 characters, not starting or ending with . or -
HUB_NAME = re.compile(
    rf'(?![^@]*(?:--|\.\.)){HUB_PART}/{HUB_PART}(?<!\.git)(?:@(?!.*\.\.)\w[\w./-]{{0,254}})?', re.ASCII
)
# the files to download in addition to PyTorch weights
OTHER_FILES = ('*.json', 'tokenizer.model', '*.jinja', f'{checkpoint.PARAMS}/*')


def has_weights(folder: Path) -> bool:
    """Whether a folder holds converted or PyTorch weights."""
    return checkpoint.is_checkpoint(folder) or torch_files.is_torch_folder(folder)


def from_hub(source: str) -> Path:
    """Downloads a Hub repository's safetensors or, if it has none, .bin files; returns the folder."""
    name, _, revision = source.partition('@')
    folder = _download(name, revision, ['model.safetensors*', 'model-*.safetensors', *OTHER_FILES])
    return folder if has_weights(folder) else _download(name, revision, ['pytorch_model*.bin*', *OTHER_FILES])


def _download(name: str, revision: str, patterns: list[str]) -> Path:
    """Downloads the files of a Hub repository that match the patterns; returns their folder in the cache."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns)
        )
    except errors.GatedRepoError:
        reason = (
            'its authors ask you to accept their terms: do so on its page, then log in with `hf auth login`'
        )
    except errors.RepositoryNotFoundError:
        reason = 'no such folder, and no such model or a private one: check its name, or `hf auth login`'
    except errors.RevisionNotFoundError:
        reason = f'the Hub has the model, but no revision {revision!r} of it'
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if folder := _from_cache(name, revision):
            return folder
        reason = (
            'no such folder here, not complete in the cache, and not reachable (no network, or '
            'HF_HUB_OFFLINE is set): download it elsewhere and give its folder, or set HF_HOME to a cache '
            'that has it'
        )
    except Exception as error:  # from the HTTP library, which may change
        problem = printable(str(error), 300)
        reason = f'the download failed ({problem}): try again, or download it elsewhere and give its folder'
    raise CheckpointError(f'{name} on the Hugging Face Hub: {reason}')


def _from_cache(name: str, revision: str) -> Path | None:
    """The folder of a Hub repository in the cache, or None unless it has the config and all files of weights.

    The Hub's client may consider a folder incomplete because another program fetched only some of its files.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, 'config.json', revision=revision or None)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    """Whether a folder has all files of its weights."""
    if checkpoint.is_checkpoint(folder):
        return (folder / checkpoint.PARAMS / 'manifest.ocdbt').exists()
    for index in (folder / name for name in torch_files.INDEXED):
        homes = read_json(index, optional=True).get('weight_map')
        files = [*homes.values()] if isinstance(homes, dict) else []
        if files and all(isinstance(file, str) and (folder / file).exists() for file in files):
            return True
    return any((folder / name).exists() for name in torch_files.SINGLE)
