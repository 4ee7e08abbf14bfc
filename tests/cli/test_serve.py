"""`vipllava serve` as a user runs it: what it checks first, what it starts, and what it says."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from vipllava_jax import loading
from vipllava_jax.asking import starting
from vipllava_jax.device_kinds import FRACTION


@pytest.fixture
def served(monkeypatch):
    """What the command runs, in place of a server and an engine."""
    from vipllava_jax.serving import process

    found = SimpleNamespace(server=None, engine=None)

    class Engine:
        error = None

        def __init__(self, model, **options):
            self.model, self.options = model, options
            found.engine = self

        def stats(self):
            return SimpleNamespace(rows=1, long_rows=0)

    def run(server, announce, listening):
        found.server = server
        server.load()
        announce('http://127.0.0.1:8000')

    module = ModuleType('vipllava_jax.engine.engine')
    module.Engine = Engine
    monkeypatch.setattr(process, 'run', run)

    def compile_ahead(weights, processor, **options):
        def start(model, progress):
            progress(3, 3)
            return Engine(model, **options)

        return start

    monkeypatch.setattr(starting, 'compile_ahead', compile_ahead)
    monkeypatch.setitem(sys.modules, 'vipllava_jax.engine.engine', module)
    monkeypatch.setenv(FRACTION, '0.9')
    return found


def test_the_model_is_served_with_the_options(vipllava, folder, served):
    ran = vipllava(
        *('serve', '--model', folder, '--dtype', 'float32', '--queue', 7, '--rows', 3, '--exact'),
        *('--served-model-name', 'mine', '--max-new-tokens', 9, '--set', 'typical_p=0.9', '--top-k', 4),
        *('--fit', 'pad', '--template', 'plain', '--drain', 5, '--log-format', 'json'),
    )
    assert ran.code == 0
    options = served.server.options
    assert (options.name, options.queue, options.drain, options.log_format) == ('mine', 7, 5, 'json')
    assert served.engine.options == {
        'rows': 3,
        'slots': 1024,
        'queue': 7,
        'exact': True,
        'max_pixels': options.limits.picture_pixels,
    }
    settings = served.engine.model.settings
    assert (settings.max_new_tokens, settings.typical_p, settings.top_k) == (9, 0.9, 4)
    assert (settings.temperature, settings.seed) == (loading.default_settings(folder).temperature, None)
    assert (served.server.served.template, served.server.served.fit) == ('plain', 'pad')
    assert served.server.progress == ('programs', 3, 3)


def test_it_says_how_it_is_called(vipllava, folder, served):
    plain = vipllava('serve', '--model', folder).err.splitlines()
    assert plain[-2:] == [
        'vipllava: serving tiny at http://127.0.0.1:8000',
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d "
        '\'{"model": "tiny", "messages": [{"role": "user", "content": "What is this?"}]}\'',
    ]
    ran = vipllava('serve', '--model', folder, '--api-key', 'secret', '--uds', 'a b')
    assert "curl --unix-socket 'a b' http://localhost/v1" in ran.err
    assert "-H 'Authorization: Bearer KEY'" in ran.err
    assert 'secret' not in ran.err


def test_the_demo_has_its_name(vipllava, served):
    assert vipllava('serve', '--model', 'demo').code == 0
    assert served.server.options.name == 'demo'


@pytest.mark.parametrize(
    ('most', 'slots', 'expected'),
    [(600, 1024, (600, 0)), (1024, 1024, (1024, 0)), (3000, 1024, (1024, {3000: 2}))],
)
def test_the_longest_prompt_and_answer_bound_the_rows(vipllava, folder, served, most, slots, expected):
    assert vipllava('serve', '--model', folder, '--max-model-len', most, '--slots', slots).code == 0
    assert (served.engine.options['slots'], served.engine.options['long_rows']) == expected
    assert served.server.served.max_model_len == most


def test_keys_come_from_everywhere(vipllava, folder, served, tmp_path, monkeypatch):
    file = tmp_path / 'keys'
    file.write_text('three\n\nfour\n')
    monkeypatch.setenv('VIPLLAVA_API_KEY', 'one two')
    vipllava('serve', '--model', folder, '--api-key-file', file, '--host', '0.0.0.0')
    assert served.server.options.api_keys == ('one', 'two', 'three', 'four')
    vipllava('serve', '--model', folder, '--api-key', 'five', '--api-key', 'six')
    assert served.server.options.api_keys == ('five', 'six')


def test_the_part_of_the_memory_is_set_before_jax_starts(vipllava, folder, served):
    vipllava('serve', '--model', folder)
    assert os.environ[FRACTION] == '0.9'  # what the user has set
    vipllava('serve', '--model', folder, '--memory-fraction', 0.5)
    assert os.environ[FRACTION] == '0.5'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--host', '0.0.0.0'], 'give an --api-key'),
        (['--tls-cert', 'none.pem'], 'none.pem: no such file'),
        (['--tls-key', 'none.pem'], 'needs --tls-cert'),
        (['--allow-origin', 'example.com'], 'expected an origin'),
        (['--allow-image-host', 'http://'], 'http://'),
        (['--api-key', 'a b'], 'an API key'),
        (['--api-key-file', 'none'], 'none: No such file'),
        (['--api-key-file', 'empty'], 'empty: expected API keys'),
        (['--api-key-file', 'remarks'], 'remarks: a line has spaces'),
        (['--port', '65536'], '--port'),
        (['--template', 'checkpoint'], 'chat template'),
        (['--model', 'nowhere'], 'nowhere'),
        (['--set', 'x=1'], 'x'),
        (['--set', 'prompt_lookup_num_tokens=3'], 'the engine does not guess tokens'),
        (['--seed', '1'], '--seed'),
    ],
)
def test_what_is_wrong_is_said_before_the_weights_are_read(
    vipllava, folder, served, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').write_text('\n')
    (tmp_path / 'remarks').write_text('# the keys\nkey\n')
    monkeypatch.setattr(loading.Source, 'load', None)
    model = [] if '--model' in args else ['--model', folder]
    ran = vipllava('serve', *model, *args)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err


def test_a_missing_package_is_one_line(vipllava, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'msgspec', None)
    for name in [
        name for name in sys.modules if name.startswith(('vipllava_jax.serving', 'vipllava_jax.protocol'))
    ]:
        monkeypatch.delitem(sys.modules, name)
    ran = vipllava('serve', '--model', folder)
    assert ran.code == 2
    assert ran.err == "vipllava: the server needs the package msgspec: pip install 'vipllava-jax[serve]'\n"
