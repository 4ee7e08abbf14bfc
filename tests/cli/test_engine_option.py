"""`--engine` of eval and regions: what answers, when an engine is started, and what it cannot do."""

import json
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from tests.asking.fakes import FakeEngine
from tests.cli.test_eval import SLOW_EVAL
from tests.makers import noise
from vipllava_jax import loading
from vipllava_jax.asking import starting
from vipllava_jax.engine import engine as module

SHORT = ('--max-new-tokens', 3, '--fit', 'pad')


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with twelve questions about pictures, a photo and five boxes on it."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for n in range(12):
        noise(40, 30, seed=n).save(tmp_path / f'{n}.png')
        rows.append({'id': f'q-{n}', 'image': f'{n}.png', 'question': f'What is {n}?', 'answer': 'x'})
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    Image.new('RGB', (90, 60), (10, 120, 200)).save(tmp_path / 'photo.png')
    (tmp_path / 'boxes.csv').write_text(''.join(f'{n},{2 * n},{40 + n},{30 + n}\n' for n in range(5)))
    return tmp_path


class Started:
    """Makes engines that answer with the question, or fail to start."""

    def __init__(self):
        self.engines, self.options, self.fault = [], [], None

    def __call__(self, model, *, progress=None, **options):
        if self.fault:
            raise self.fault
        self.options.append(options)
        self.engines.append(FakeEngine())
        return self.engines[-1]


@pytest.fixture
def started(monkeypatch):
    def start(model, progress):
        progress(0, 3)
        progress(3, 3)
        return module.Engine(model)

    monkeypatch.setattr(module, 'Engine', started := Started())
    monkeypatch.setattr(starting, 'compile_ahead', lambda *_: start)
    return started


@pytest.fixture
def weightless(monkeypatch):
    """Commands load no weights."""
    monkeypatch.setattr(loading.Source, 'load', lambda self, progress=None: {})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_eval_asks_an_engine_if_told_to(vipllava, folder, place, started, weightless):
    ran = vipllava('eval', '--model', folder, '--data', 'rows.jsonl', *SHORT, '--engine')
    assert ran.code == 0, ran.err
    (engine,) = started.engines
    assert engine.closed
    assert 'programs 3/3' in ran.err
    assert 'answers 12/12' in ran.err
    answers = lines(place / 'rows.answers.jsonl')[1:]
    assert sorted(answer['id'] for answer in answers) == sorted(f'q-{n}' for n in range(12))
    assert all(answer['answer'].endswith(answer['question']) for answer in answers)
    again = vipllava('eval', '--model', folder, '--data', 'rows.jsonl', *SHORT)
    assert again.out == ran.out
    assert len(started.engines) == 1


def test_regions_are_printed_in_their_order(vipllava, folder, place, started, weightless):
    ask = ('regions', 'photo.png', '--model', folder, '--boxes', 'boxes.csv', *SHORT)
    ran = vipllava(*ask, '--engine')
    assert ran.code == 0, ran.err
    printed = [json.loads(line) for line in ran.out.splitlines()]
    assert [record['index'] for record in printed] == [*range(5)]
    assert {record['answer'] for record in printed} == {'What is within the red rectangle?'}
    assert all((record['new_tokens'], record['finish_reason']) == (2, 'stop') for record in printed)
    (place / 'some.jsonl').write_text('\n'.join(ran.out.splitlines()[:2]) + '\n')
    resumed = vipllava(*ask, '--engine', '--output', 'some.jsonl', '--resume')
    assert resumed.code == 0, resumed.err
    assert (place / 'some.jsonl').read_text() == ran.out
    assert len(started.engines[1].asked) == 3


@pytest.mark.parametrize('command', ['eval', 'regions'])
def test_many_questions_start_an_engine_except_on_a_cpu(
    vipllava, folder, place, started, weightless, monkeypatch, command
):
    ask = {
        'eval': ('eval', '--model', folder, '--data', 'rows.jsonl', *SHORT),
        'regions': ('regions', 'photo.png', '--model', folder, '--boxes', 'boxes.csv', *SHORT),
    }[command]
    monkeypatch.setattr(starting, 'MIN_QUESTIONS', 5)
    assert not starting.wants_engine(None, 5)  # this is a CPU
    device = type('Device', (), {'platform': 'gpu'})
    monkeypatch.setattr('jax.local_devices', lambda: [device])
    assert [starting.wants_engine(None, n) for n in (4, 5)] == [False, True]
    assert vipllava(*ask).code == 0
    assert len(started.engines) == 1


def test_batches_answer_if_the_memory_has_no_room_and_no_engine_was_asked_for(
    vipllava, folder, place, started, monkeypatch
):
    monkeypatch.setattr(starting, 'wants_engine', lambda choice, count: choice is not False)
    started.fault = ValueError('the memory has no room for a row')
    loads, load = [], loading.Source.load
    monkeypatch.setattr(loading.Source, 'load', lambda *given: loads.append(1) or load(*given))
    ran = vipllava('eval', '--model', folder, '--data', 'rows.jsonl', *SHORT)
    assert ran.code == 0, ran.err
    assert 'has no room for the engine: answering in batches' in ran.err
    assert 'answers 12/12' in ran.err
    assert len(loads) == 1
    refused = vipllava('eval', '--model', folder, '--data', 'rows.jsonl', *SHORT, '--engine', '--restart')
    assert (refused.code, refused.out) == (2, '')
    assert 'the memory has no room for a row' in refused.err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('eval', '--data', 'rows.jsonl', '--choose'), 'does not compute the likelihood of options'),
        (('regions', 'photo.png', '--boxes', 'boxes.csv', '--mode', 'together'), '--mode separate'),
        (('regions', 'photo.png', '--boxes', 'boxes.csv', '--temperature', 1), 'draws other samples'),
        (('regions', 'photo.png', '--boxes', 'boxes.csv', '--beams', 2), 'does not search beams'),
    ],
)
def test_what_an_engine_cannot_do_is_an_error_before_the_weights_are_loaded(
    vipllava, folder, place, monkeypatch, arguments, message
):
    monkeypatch.setattr(loading.Source, 'load', None)
    ran = vipllava(*arguments, '--model', folder, '--engine')
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err


@pytest.mark.by_hand
def test_a_killed_evaluation_through_an_engine_resumes(vipllava, folder, place):
    command = ['eval', '--model', str(folder), '--data', 'rows.jsonl', *map(str, SHORT)]
    path = place / 'rows.answers.jsonl'
    with (place / 'rows.jsonl').open('a') as file:
        for n in range(12, 60):
            row = {'id': f'q-{n}', 'image': f'{n % 12}.png', 'question': f'Who is {n}?', 'answer': 'x'}
            file.write(json.dumps(row) + '\n')
    counts = [0]
    for _ in range(2):
        arguments = [sys.executable, '-c', SLOW_EVAL, *command, '--engine']
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            while not path.exists() or path.read_bytes().count(b'\n') < counts[-1] + 3:
                assert running.poll() is None
                time.sleep(0.01)
            running.kill()
        assert running.returncode == -signal.SIGKILL
        counts.append(path.read_bytes().count(b'\n') - 1)
    assert 2 <= counts[1] < counts[2] < 60
    kept = path.read_bytes()
    whole = vipllava(*command, '--output', 'whole.jsonl', '--no-engine')
    ran = vipllava(*command, '--engine')
    assert (ran.code, ran.out) == (0, whole.out), ran.err
    assert path.read_bytes().startswith(kept[: kept.rindex(b'\n') + 1])
    assert sorted(path.read_bytes().splitlines()) == sorted((place / 'whole.jsonl').read_bytes().splitlines())


@pytest.mark.slow
def test_regions_have_the_same_lines_and_captions(vipllava, folder, place):
    ask = ('regions', 'photo.png', '--model', folder, '--boxes', 'boxes.csv', *SHORT)
    for name in ('engine.json', 'batches.json'):
        which = '--engine' if name == 'engine.json' else '--no-engine'
        ran = vipllava(*ask, which, '--output', name)
        assert ran.code == 0, ran.err
    assert (place / 'engine.json').read_text() == (place / 'batches.json').read_text()
