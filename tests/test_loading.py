"""`load`: from every kind of source the same model, bit by bit, and never a buffer that is still in use."""

import gc
import json
import os
import shutil
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.layout import Format, Layout
from vipllava_convert import to_flax
from vipllava_convert.table import Leaf, Plan, leaves
from vipllava_convert.tensors import Tensor, dense
from vipllava_convert.to_torch import export

from tests.conftest import TINY
from tests.trees import same
from tests.worlds import of_all_types, rows
from vipllava_jax import checkpoint, loading
from vipllava_jax.arrays import size
from vipllava_jax.evaluation import evaluate
from vipllava_jax.folders import CheckpointError
from vipllava_jax.generation import decoding
from vipllava_jax.generation.decoding import generate
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.loading import abstract, load, locate


@pytest.fixture(scope='module')
def torch_folder(folder, tmp_path_factory):
    """The PyTorch folder of the converted one."""
    target = tmp_path_factory.mktemp('torch') / 'model'
    export(folder, target, max_shard_bytes=150_000)
    return target


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16', jnp.float32])
def test_loading_is_converting_and_restoring(folder, torch_folder, dtype):
    seen = []
    a = load(torch_folder, dtype=dtype, progress=lambda *told: seen.append(told))
    b = load(str(folder), dtype=dtype)
    assert a.cfg == b.cfg
    same(a.params, b.params)
    assert isinstance(a.processor, Processor)
    assert isinstance(b.processor, Processor)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(a.params))
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize(
    ('dtype', 'quantize', 'fuse'),
    [(None, None, False), ('bfloat16', None, True), ('float16', 'int8', False)]
    + [(None, kind, True) for kind in ('int8', 'int4')],
)
def test_the_shapes_are_known_before_the_weights(folder, torch_folder, dtype, quantize, fuse):
    def described(params):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), params)

    for source in (folder, torch_folder):
        params, cfg = abstract(source, dtype=dtype, quantize=quantize, fuse=fuse)
        model = load(source, dtype=dtype, quantize=quantize, fuse=fuse)
        assert (described(params), cfg) == (described(model.params), model.cfg)


@pytest.mark.parametrize('fuse', [False, True])
@pytest.mark.parametrize(
    ('kind', 'types'), [('int8', ('int8', 'float32')), ('int4', ('int32', 'bfloat16'))], ids=['int8', 'int4']
)
@pytest.mark.slow
def test_quantised_when_loaded_or_when_converted(torch_folder, folder, tmp_path, kind, types, fuse):
    """The same values and scales, whose type no dtype changes; every other weight is in that type."""
    small = tmp_path / kind
    to_flax.convert(torch_folder, small, quantize=kind)
    for dtype in (None, 'bfloat16'):
        found = load(small, dtype=dtype, fuse=fuse).params
        same(found, load(torch_folder, dtype=dtype, quantize=kind, fuse=fuse).params)
        same(found, load(folder, dtype=dtype, quantize=kind, fuse=fuse).params)
        same(found, load(small, dtype=dtype, quantize=kind, fuse=fuse).params)
        o = found['llama']['layers_0']['o']['w']
        assert (o.dtype, o.values.dtype, o.scale.dtype) == (kind, *types)
        assert found['llama']['norm']['w'].dtype == (dtype or 'float32')
    assert size(checkpoint.shapes(small)) < size(checkpoint.shapes(folder))


def test_an_unknown_way_to_quantise_is_named(folder):
    with pytest.raises(CheckpointError, match='int3: .* int8, int4'):
        load(folder, quantize='int3')


def test_without_a_tokenizer_there_is_no_processor(torch_folder, tmp_path):
    shutil.copytree(torch_folder, tmp_path / 'bare', ignore=shutil.ignore_patterns('token*'))
    assert load(tmp_path / 'bare').processor is None


def test_a_broken_processor_is_told_before_the_weights_are_read(torch_folder, tmp_path, monkeypatch):
    copy = shutil.copytree(torch_folder, tmp_path / 'copy')
    (copy / 'tokenizer.json').write_text('{')
    monkeypatch.setattr(to_flax, 'stream', None)
    with pytest.raises(ValueError, match=r'tokenizer\.json'):
        load(copy)


def one_after_another(sizes, dtype, layout, tmp_path_factory) -> Plan:
    """Tensors of one kind in a file, the i-th all of i, as a plan to read them."""
    file = tmp_path_factory.mktemp('files') / 'file'
    pairs, data = [], b''
    for i in range(6):
        leaf = Leaf(f'x{i}', f'x{i}', layout, tuple(sizes.items()))
        array = np.full(leaf.shapes[0], i + 1, jnp.dtype(dtype))
        pairs.append((leaf, Tensor(file, len(data), dtype, array.shape, dense(array.shape))))
        data += array.tobytes()
    file.write_bytes(data)
    return Plan(TINY, tuple(pairs), ())


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('target', ['float32', 'bfloat16'])
@pytest.mark.parametrize('layout', ['D->D', 'FD->DF', '(NH)->NH', '(NH)D->DNH', 'VD->VD'])
def test_a_buffer_is_free_before_it_is_used_again(layout, target, threads, tmp_path_factory, monkeypatch):
    """Of megabytes, so that a CPU is still at work on one when the next is read: a leaf would change."""
    monkeypatch.setattr(to_flax, 'THREADS', threads)
    one = layout in ('D->D', '(NH)->NH')
    sizes = dict(D=2**20 if one else 1024, F=1024, N=1024 if one else 16, H=1024 if one else 64, V=1024)
    sizes = {letter: size for letter, size in sizes.items() if letter in layout}
    plan = one_after_another(sizes, 'float32', layout, tmp_path_factory)
    for i, (_, array) in enumerate(list(to_flax.stream(plan, target))):
        assert np.all(np.asarray(array, np.float32) == i + 1), i


def test_reading_does_not_wait_for_the_compiler(tmp_path_factory, monkeypatch):
    """With one thread to read: were it also the one that compiles, nothing would be read before."""
    monkeypatch.setattr(to_flax, 'THREADS', 1)
    begun, program, read = threading.Event(), to_flax._program, to_flax.read

    def reading(*args):
        begun.set()
        return read(*args)

    def compiling(*args):
        assert begun.wait(10)
        return program(*args)

    monkeypatch.setattr(to_flax, 'read', reading)
    monkeypatch.setattr(to_flax, '_program', compiling)
    plan = one_after_another(dict(D=64, F=64), 'float32', 'FD->DF', tmp_path_factory)
    assert len(list(to_flax.stream(plan))) == 6


@pytest.mark.slow
def test_a_leaf_that_nobody_keeps_is_gone(tmp_path_factory):
    plan = one_after_another(dict(D=64, F=64), 'float32', 'FD->DF', tmp_path_factory)
    alive = []
    for _, array in to_flax.stream(plan):
        alive.append(weakref.ref(array))
        del array
        gc.collect()
        assert sum(each() is not None for each in alive) <= 1


@given(st.sampled_from(checkpoint.FLOATS), st.sampled_from(checkpoint.FLOATS), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_casting_rounds_as_numpy_does(tmp_path_factory, dtype, target, seed):
    """All bits but not-a-numbers, whose payloads are nobody's business; subnormal numbers are not lost."""
    array = np.frombuffer(np.random.default_rng(seed).bytes(4096), jnp.dtype(dtype))
    array = np.where(np.isnan(array.astype(np.float32)), np.zeros_like(array), array)
    file = tmp_path_factory.mktemp('files') / 'file'
    file.write_bytes(array.tobytes())
    plan = Plan(
        TINY, ((Leaf('x', 'x', 'D->D', (('D', array.size),)), Tensor(file, 0, dtype, array.shape, (1,))),), ()
    )
    ((_, found),) = to_flax.stream(plan, target)
    with np.errstate(over='ignore'):
        np.testing.assert_array_equal(np.asarray(found), array.astype(jnp.dtype(target)))


def message(source) -> str:
    with pytest.raises(CheckpointError) as told:
        load(source)
    assert '\n' not in str(told.value)
    return str(told.value)


def test_no_such_folder(tmp_path):
    assert message(tmp_path / 'none').startswith(
        f'{tmp_path}/none: no such folder, and not a name on the Hugging Face Hub'
    )
    for name in ('none', './none/there', 'a/b/c', '', 'a/b@'):
        assert 'no such folder' in message(name) or 'no weights' in message(name)
    (tmp_path / 'file').touch()
    assert f'{tmp_path}/file: a file; give the folder' in message(tmp_path / 'file')


def test_a_folder_without_weights(tmp_path):
    assert message(tmp_path).endswith('pytorch_model.bin.index.json, found nothing')
    (tmp_path / 'readme').touch()
    assert message(tmp_path).startswith(
        f'{tmp_path}: no weights: looked for vipllava.json, model.safetensors, '
    )
    assert message(tmp_path).endswith('found readme')


@pytest.mark.parametrize('dtype', ['int8', 'float64', 'x'])
def test_no_type_but_floats(folder, dtype):
    with pytest.raises(CheckpointError, match=f'{dtype}: not a type of weights'):
        load(folder, dtype=dtype)


@pytest.mark.parametrize(
    'text', [None, '{', '{"model_type": "bert"}', '{"model_type": "vipllava", "text_config": 3}']
)
def test_a_config_that_does_not_do(torch_folder, tmp_path, text):
    copy = shutil.copytree(torch_folder, tmp_path / 'copy')
    (copy / 'config.json').unlink()
    if text is not None:
        (copy / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=f'^{copy}/config.json'):
        load(copy)


class Hub:
    """Stands for the Hub: a folder in place of a repository, of which it gives what is asked for."""

    def __init__(self, source, cache, monkeypatch):
        self.source, self.cache, self.asked = source, cache, []
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, 'snapshot_download', self.download)

    def download(self, name, *, revision, allow_patterns):
        from fnmatch import fnmatch

        self.asked.append((name, revision))
        self.cache.mkdir(exist_ok=True)
        for path in self.source.rglob('*'):
            inside = path.relative_to(self.source)
            if path.is_file() and any(fnmatch(str(inside), pattern) for pattern in allow_patterns):
                (self.cache / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / inside)
        return str(self.cache)


def test_a_name_on_the_hub(torch_folder, folder, tmp_path, monkeypatch):
    repository = shutil.copytree(torch_folder, tmp_path / 'repository')
    for other in ('pytorch_model.bin', 'training_args.bin', 'optimizer.safetensors', 'flax_model.msgpack'):
        (repository / other).touch()
    hub = Hub(repository, tmp_path / 'cache', monkeypatch)
    same(load('mine/tiny').params, load(folder).params)
    assert load('mine/tiny@v1.0').processor is not None
    assert hub.asked == [('mine/tiny', None), ('mine/tiny', 'v1.0')]
    assert {path.name for path in hub.cache.iterdir()} == {path.name for path in torch_folder.iterdir()}


def test_a_repository_without_safetensors(torch_folder, tmp_path, monkeypatch):
    from tests.convert.files import write_bin

    repository = tmp_path / 'repository'
    repository.mkdir()
    plan = to_flax.plan(torch_folder)
    arrays = {leaf.name: np.asarray(x) for (leaf, _), x in zip(plan.pairs, _as_stored(plan), strict=True)}
    write_bin(repository / 'pytorch_model.bin', arrays)
    shutil.copy(torch_folder / 'config.json', repository)
    hub = Hub(repository, tmp_path / 'cache', monkeypatch)
    same(load('mine/tiny').params, load(torch_folder).params)
    assert len(hub.asked) == 2


def _as_stored(plan):
    from vipllava_convert.tensors import read

    for _, tensor in plan.pairs:
        yield np.array(read(tensor, memoryview(bytearray(tensor.span))))


def test_a_converted_repository(folder, tmp_path, monkeypatch):
    Hub(folder, tmp_path / 'cache', monkeypatch)
    same(load('mine/converted').params, load(folder).params)


class Response:
    headers, request, status_code = {}, None, 401


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('GatedRepoError', 'accept their terms'),
        ('RepositoryNotFoundError', 'no such model or a private one'),
        ('RevisionNotFoundError', "no revision 'v9'"),
        ('LocalEntryNotFoundError', 'HF_HUB_OFFLINE'),
        ('OfflineModeIsEnabled', 'give its folder, or set HF_HOME'),
        ('HfHubHTTPError', r'the download failed \(broken pipe\): try again'),
    ],
)
def test_what_is_wrong_with_the_hub(name, told, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, name)
    more = {'response': Response()} if issubclass(kind, errors.HfHubHTTPError) else {}

    def download(*_, **__):
        raise kind('broken\npipe', **more)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    with pytest.raises(CheckpointError, match=f'mine/tiny on the Hugging Face Hub: .*{told}'):
        load('mine/tiny@v9')


def test_the_cache_of_the_hub_without_a_network(torch_folder, tmp_path):
    """The real client, offline, in a process of its own: it reads its switches when it is imported."""
    from tests.convert.test_to_flax import child

    commit = '0' * 40
    home = tmp_path / 'hub' / 'models--mine--tiny'
    (home / 'refs').mkdir(parents=True)
    (home / 'refs' / 'main').write_text(commit)
    shutil.copytree(torch_folder, home / 'snapshots' / commit)
    code = (
        'from vipllava_jax.loading import locate\n'
        'for name in sys.argv[1:]:\n'
        '    try: print(locate(name))\n'
        '    except ValueError as error: print(error)'
    )
    settings = {**os.environ, 'HF_HOME': str(tmp_path), 'HF_HUB_OFFLINE': '1'}
    settings.pop('HF_HUB_CACHE', None)
    with child(code, 'mine/tiny', 'mine/other', env=settings) as process:
        found, missing = process.communicate(timeout=60)[0].splitlines()
    assert found == str(home / 'snapshots' / commit)
    assert missing.startswith('mine/other on the Hugging Face Hub: no such folder')


def test_the_published_7b_lies_about_its_features(torch_folder, tmp_path):
    copy = shutil.copytree(torch_folder, tmp_path / 'copy')
    said = json.loads((copy / 'config.json').read_text())
    del said['vision_feature_layers']
    said |= {
        'vision_feature_layer': -2,
        'projector_layernorm': False,
        'vision_feature_select_strategy': 'default',
    }
    (copy / 'config.json').write_text(json.dumps(said))
    assert load(copy).cfg == load(torch_folder).cfg
    assert len(list(leaves(load(copy).cfg))) == len(jax.tree.leaves(load(copy).params))


def test_a_folder_is_found_before_the_hub_is_asked(torch_folder, tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    shutil.copytree(torch_folder, tmp_path / 'mine' / 'tiny')
    monkeypatch.chdir(tmp_path)
    assert locate('mine/tiny').resolve() == tmp_path / 'mine' / 'tiny'
    monkeypatch.setenv('HOME', str(tmp_path))
    assert locate('~/mine/tiny') == tmp_path / 'mine' / 'tiny'


def test_fused_weights_answer_the_same(folder):
    plain, fused = load(folder, fuse=False), load(folder, fuse=True)
    assert 'qkv' in fused.params['llama']['layers_0']
    batch = plain.processor('What is this?')
    answers = [generate(m.params, batch, cfg=m.cfg, max_new_tokens=9).tokens for m in (plain, fused)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.slow
def test_smaller_weights_mean_the_same(demo_model, tmp_path):
    """A model that knows its world is rarely in doubt: rounding changes few of 16 answers."""
    asked = rows(tmp_path, of_all_types(1))

    def said(model):
        return [answer['said'] for answer in evaluate(model, asked, images=tmp_path).answers]

    whole = said(demo_model)
    for smaller in ({'dtype': 'bfloat16'}, {'dtype': 'float32', 'quantize': 'int8'}):
        same = [a == b for a, b in zip(whole, said(load('demo', **smaller)), strict=True)]
        assert sum(same) >= 15, smaller


def test_on_a_tpu_the_compiler_lays_the_decoder_out(folder, monkeypatch):
    plain = load(folder).params

    def turned(llama, cfg):
        return jax.tree.map(lambda w: Format(Layout(tuple(reversed(range(w.ndim)))), w.sharding), llama)

    monkeypatch.setattr(decoding, 'formats', turned)
    same(load(folder).params, plain)
    assert load(folder).params['llama']['head']['w'].format.layout.major_to_minor == (0, 1)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    params = load(folder).params
    same(params, plain)
    assert params['llama']['head']['w'].format.layout.major_to_minor == (1, 0)


@pytest.mark.parametrize('quantize', [None, 'int8'])
def test_on_a_tpu_what_is_compiled_for_the_shapes_is_what_runs(folder, monkeypatch, quantize):
    def turned(llama, cfg):
        def format(w):
            return Format(Layout(tuple(reversed(range(w.ndim))), tiling=()), w.sharding)

        return jax.tree.map(format, llama)

    monkeypatch.setattr(decoding, 'formats', turned)
    monkeypatch.setattr(loading, '_on', lambda backend: backend == 'tpu')
    shapes, cfg = abstract(folder, quantize=quantize, fuse=True)
    model = load(folder, quantize=quantize, fuse=True)
    laid_out = [
        [w.format.layout.major_to_minor for w in jax.tree.leaves(params['llama'])]
        for params in (shapes, model.params)
    ]
    assert laid_out[0] == laid_out[1]
    batch = model.processor('What is it?')
    settings = dict(cfg=cfg, max_new_tokens=150)
    compiled = []

    def listen(event, seconds, fun_name='', **_):
        if event.endswith('backend_compile_duration') and ('start' in fun_name or 'advance' in fun_name):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        decoding.compile_for(shapes, batch, **settings)
        assert len(compiled) == 2
        generate(model.params, batch, **settings)
        assert len(compiled) == 2
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
