"""Models on the Hugging Face Hub: what a name is, and the folder in the Hub's cache that has its files."""

import re
from pathlib import Path

from vipllava_convert import torch_files

from vipllava_jax import checkpoint
from vipllava_jax.files import read_json
from vipllava_jax.messages import CheckpointError

HUB_PART = r'\w(?:[\w.-]{0,94}\w)?'  # of at most 96 characters, none of . and - at either end
HUB_NAME = re.compile(
    rf'(?![^@]*(?:--|\.\.)){HUB_PART}/{HUB_PART}(?<!\.git)(?:@(?!.*\.\.)\w[\w./-]{{0,254}})?', re.ASCII
)
BESIDE = ('*.json', 'tokenizer.model', '*.jinja', f'{checkpoint.PARAMS}/*')  # PyTorch's weights


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights, ours or PyTorch's."""
    return checkpoint.is_checkpoint(folder) or torch_files.is_torch_folder(folder)


def from_hub(source: str) -> Path:
    """The folder of a Hub repository in the cache, with its safetensors, or if it has none its .bin files."""
    name, _, revision = source.partition('@')
    folder = _download(name, revision, ['model.safetensors*', 'model-*.safetensors', *BESIDE])
    return folder if has_weights(folder) else _download(name, revision, ['pytorch_model*.bin*', *BESIDE])


def _download(name: str, revision: str, patterns: list[str]) -> Path:
    """The files of a Hub repository that match, in the Hub's own cache."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns)
        )
    except errors.GatedRepoError:
        told = (
            'its authors ask you to accept their terms: do so on its page, then log in with `hf auth login`'
        )
    except errors.RepositoryNotFoundError:
        told = 'no such folder, and no such model or a private one: check its name, or `hf auth login`'
    except errors.RevisionNotFoundError:
        told = f'the Hub has the model, but no revision {revision!r} of it'
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if folder := _from_cache(name, revision):
            return folder
        told = (
            'no such folder here, not whole in the cache, and out of reach (no network, or HF_HUB_OFFLINE '
            'is set): download it elsewhere and give its folder, or set HF_HOME to a cache that has it'
        )
    except Exception as error:  # whatever the HTTP library below raises: it has changed before
        reason = ' '.join(str(error).split())
        told = f'the download failed ({reason}): try again, or download it elsewhere and give its folder'
    raise CheckpointError(f'{name} on the Hugging Face Hub: {told}')


def _from_cache(name: str, revision: str) -> Path | None:
    """The folder of a Hub repository in the cache, if it holds all that is needed here.

    For the Hub's client it is not whole where another tool has not fetched files that it knows to be there.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, 'config.json', revision=revision or None)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    """Whether all weights of a folder are there, by the names of their files."""
    if checkpoint.is_checkpoint(folder):
        return (folder / checkpoint.PARAMS / 'manifest.ocdbt').exists()
    for index in (folder / name for name in torch_files.INDEXED):
        homes = read_json(index, optional=True).get('weight_map')
        files = [*homes.values()] if isinstance(homes, dict) else []
        if files and all(isinstance(file, str) and (folder / file).exists() for file in files):
            return True
    return any((folder / name).exists() for name in torch_files.SINGLE)
