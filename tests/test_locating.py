"""Locating a model: a folder, a name on the Hub, the Hub's cache; and errors for what is not a model."""

import json
import os
import shutil

import numpy as np
import pytest

from tests.trees import same
from vipllava_jax.convert import to_flax
from vipllava_jax.hub import HUB_NAME
from vipllava_jax.loading import load, locate
from vipllava_jax.messages import CheckpointError


def message(source) -> str:
    with pytest.raises(CheckpointError) as raised:
        load(source)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_a_missing_folder_is_an_error(tmp_path):
    assert message(tmp_path / 'none').startswith(
        f'{tmp_path}/none: no such folder, and not a name on the Hugging Face Hub'
    )
    assert message('').startswith('the name of the model is empty')
    for name in ('none', 'a/b/c', 'a/b@'):
        assert 'no such folder' in message(name) or 'no weights' in message(name)
    (tmp_path / 'file').touch()
    assert f'{tmp_path}/file: a file; give the folder' in message(tmp_path / 'file')


@pytest.mark.parametrize(
    'sources',
    [
        ('./missing', '../x/y', '/x/y', 'a/b/', '~/x', '~nobody-of-this-name/x', './a/b', 'a//b', 'a\\b/c'),
        ('.a/b', 'a/.b', '-a/b', 'a/b-', 'a./b', 'a/b.', 'a--b/c', 'a/b..c', 'a/b.git', 'é/b'),
        ('a/b@../c', 'a/b@', 'a/b@-x', 'a/b\0', 'a/b\n', 'a/b@' + 'c' * 300),
        ('a' * 97 + '/b', 'a/' + 'b' * 97, 'x' * 5000),
    ],
    ids=['paths', 'characters', 'revisions', 'lengths'],
)
def test_paths_are_not_names_on_the_hub(sources, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
    for source in sources:
        assert 'on the Hugging Face Hub: ' not in message(source)


@pytest.mark.parametrize(
    'source',
    ['a/b', 'llava-hf/vip-llava-7b-hf', '_a/b_', 'a.b/c.d', 'a/b@main', 'a/b@refs/pr/1', 'A/b@v1.0--x'],
)
def test_names_on_the_hub_are_recognized(source):
    assert HUB_NAME.fullmatch(source)


def test_a_folder_without_weights_is_an_error(tmp_path):
    assert message(tmp_path).endswith('pytorch_model.bin.index.json, found nothing')
    (tmp_path / 'readme').touch()
    assert message(tmp_path).startswith(
        f'{tmp_path}: no weights: looked for vipllava.json, model.safetensors, '
    )
    assert message(tmp_path).endswith('found readme')


@pytest.mark.parametrize('dtype', ['int8', 'float64', 'x'])
def test_only_float_dtypes_are_accepted(folder, dtype):
    with pytest.raises(CheckpointError, match=f'{dtype}: not a dtype of weights'):
        load(folder, dtype=dtype)


@pytest.mark.parametrize(
    'text', [None, '{', '{"model_type": "bert"}', '{"model_type": "vipllava", "text_config": 3}']
)
def test_an_invalid_config_is_an_error_that_names_it(source, tmp_path, text):
    copy = shutil.copytree(source, tmp_path / 'copy')
    (copy / 'config.json').unlink()
    if text is not None:
        (copy / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=f'^{copy}/config.json'):
        load(copy)


class Hub:
    """A fake Hub: a folder takes the place of a repository, from which it returns the requested files."""

    def __init__(self, source, cache, monkeypatch):
        self.source, self.cache, self.requests = source, cache, []
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, 'snapshot_download', self.download)

    def download(self, name, *, revision, allow_patterns):
        from fnmatch import fnmatch

        self.requests.append((name, revision))
        self.cache.mkdir(exist_ok=True)
        for path in self.source.rglob('*'):
            inside = path.relative_to(self.source)
            if path.is_file() and any(fnmatch(str(inside), pattern) for pattern in allow_patterns):
                (self.cache / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / inside)
        return str(self.cache)


def test_a_name_on_the_hub_is_downloaded(source, folder, tmp_path, monkeypatch):
    repository = shutil.copytree(source, tmp_path / 'repository')
    for other in ('pytorch_model.bin', 'training_args.bin', 'optimizer.safetensors', 'flax_model.msgpack'):
        (repository / other).touch()
    hub = Hub(repository, tmp_path / 'cache', monkeypatch)
    same(load('mine/tiny').params, load(folder).params)
    assert load('mine/tiny@v1.0').processor is not None
    assert hub.requests == [('mine/tiny', None), ('mine/tiny', 'v1.0')]
    assert {path.name for path in hub.cache.iterdir()} == {path.name for path in source.iterdir()}


def test_a_repository_without_safetensors_is_downloaded_as_bin(source, tmp_path, monkeypatch):
    from tests.convert.files import write_bin

    repository = tmp_path / 'repository'
    repository.mkdir()
    plan = to_flax.plan_conversion(source)
    arrays = {leaf.name: np.asarray(x) for (leaf, _), x in zip(plan.pairs, _as_stored(plan), strict=True)}
    write_bin(repository / 'pytorch_model.bin', arrays)
    shutil.copy(source / 'config.json', repository)
    hub = Hub(repository, tmp_path / 'cache', monkeypatch)
    same(load('mine/tiny').params, load(source).params)
    assert len(hub.requests) == 2


def _as_stored(plan):
    from vipllava_jax.convert.tensors import read_tensor

    for _, tensor in plan.pairs:
        yield np.array(read_tensor(tensor, memoryview(bytearray(tensor.span))))


def test_a_converted_repository_is_loaded(folder, tmp_path, monkeypatch):
    Hub(folder, tmp_path / 'cache', monkeypatch)
    same(load('mine/converted').params, load(folder).params)


class Response:
    headers, request, status_code = {}, None, 401


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('GatedRepoError', 'accept their terms'),
        ('RepositoryNotFoundError', 'no such model or a private one'),
        ('RevisionNotFoundError', "no revision 'v9'"),
        ('LocalEntryNotFoundError', 'HF_HUB_OFFLINE'),
        ('OfflineModeIsEnabled', 'give its folder, or set HF_HOME'),
        ('HfHubHTTPError', r'the download failed \(broken pipe\): try again'),
    ],
)
def test_errors_of_the_hub_are_explained(name, expected, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    error_type = getattr(errors, name)
    more = {'response': Response()} if issubclass(error_type, errors.HfHubHTTPError) else {}

    def download(*_, **__):
        raise error_type('broken\npipe', **more)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    with pytest.raises(CheckpointError, match=f'mine/tiny on the Hugging Face Hub: .*{expected}'):
        load('mine/tiny@v9')


def test_the_cache_of_the_hub_is_used_without_a_network(source, tmp_path):
    """The real client, offline, in a separate process, because it reads its settings when imported."""
    from tests.convert.test_to_flax import child

    commit = '0' * 40
    home = tmp_path / 'hub' / 'models--mine--tiny'
    (home / 'refs').mkdir(parents=True)
    (home / 'refs' / 'main').write_text(commit)
    shutil.copytree(source, home / 'snapshots' / commit)
    partial = shutil.copytree(home, tmp_path / 'hub' / 'models--mine--partial')
    (partial / 'snapshots' / commit / sorted(source.glob('*-of-*'))[-1].name).unlink()
    files = {path.name: {'size': path.stat().st_size, 'blob_id': '0' * 40} for path in source.iterdir()}
    # without these files, which are not needed here, the client would report an incomplete cache
    files |= {name: {'size': 1, 'blob_id': '1' * 40} for name in ('model.safetensors.old', 'extra.json')}
    for place in (home, partial):
        (place / 'trees').mkdir()
        (place / 'trees' / f'{commit}.json').write_text(json.dumps({'format_version': 1, 'files': files}))
    code = (
        'from vipllava_jax.loading import locate\n'
        'for name in sys.argv[1:]:\n'
        '    try: print(locate(name))\n'
        '    except ValueError as error: print(error)'
    )
    settings = {**os.environ, 'HF_HOME': str(tmp_path), 'HF_HUB_OFFLINE': '1'}
    settings.pop('HF_HUB_CACHE', None)
    names = ('mine/tiny', f'mine/tiny@{commit}', 'mine/partial', 'mine/other', 'mine/tiny@v2')
    with child(code, *names, env=settings) as process:
        found, same, *missing = process.communicate(timeout=60)[0].splitlines()
    assert found == same == str(home / 'snapshots' / commit)
    for name, line in zip(('mine/partial', 'mine/other', 'mine/tiny'), missing, strict=True):
        reason = 'no such folder here, not complete in the cache'
        assert line.startswith(f'{name} on the Hugging Face Hub: {reason}')


def test_a_local_folder_takes_precedence_over_the_hub(source, tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    shutil.copytree(source, tmp_path / 'mine' / 'tiny')
    monkeypatch.chdir(tmp_path)
    assert locate('mine/tiny').resolve() == tmp_path / 'mine' / 'tiny'
    monkeypatch.setenv('HOME', str(tmp_path))
    assert locate('~/mine/tiny') == tmp_path / 'mine' / 'tiny'
