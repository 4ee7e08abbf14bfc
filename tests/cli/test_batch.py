"""`vipllava batch` as a user runs it, with an engine that answers with the prompt."""

import json
import os
import signal
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.batch_files.fakes import FakeEngine, ReplyingEngine, text_of
from tests.makers import noise
from vipllava_jax import loading
from vipllava_jax.asking import starting
from vipllava_jax.engine.question import QuestionError


@pytest.fixture
def engines(monkeypatch):
    """The engines that the command has opened, in place of real ones."""
    engines = SimpleNamespace(
        opened=[], fails={'bad': QuestionError('the picture is damaged')}, kind=FakeEngine
    )

    def start(model, **options):
        engine = engines.kind(model, fails=lambda question: engines.fails.get(text_of(question)))
        engine.options = options
        engines.opened.append(engine)
        return engine

    module = ModuleType('vipllava_jax.engine.engine')
    module.Engine = start
    monkeypatch.setitem(sys.modules, 'vipllava_jax.engine.engine', module)

    def compile_ahead(weights, processor, **options):
        return lambda model, progress: start(model, **options)

    monkeypatch.setattr(starting, 'compile_ahead', compile_ahead)
    return engines


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with rows.jsonl, of which the third is broken."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({'id': f'r{n}', 'prompt': f'What is {n}?', 'page': n}) for n in range(40)]
    rows[2] = '{"id": "r2", "prompt": '
    (tmp_path / 'rows.jsonl').write_text('\n'.join(rows) + '\n')
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_rows_are_answered(vipllava, folder, engines, place):
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl', '--max-new-tokens', 3)
    ran = vipllava(*command, '--exact', '--rows', 3)
    assert (ran.code, ran.out) == (1, '')
    assert ran.err.splitlines()[-1] == (
        'vipllava: 39 answers and 1 error are in out.jsonl: see its lines with "error"; --retry-errors '
        'answers these rows again'
    )
    found = {line['id']: line for line in lines(place / 'out.jsonl')}
    assert found.keys() == {*(f'r{n}' for n in range(40) if n != 2), 'line 3'}
    assert found['r7'] == {
        'id': 'r7',
        'answer': 'What is 7?',
        'finish_reason': 'stop',
        'prompt_tokens': 7,
        'new_tokens': 1,
        'row': {'page': 7},
    }
    assert found['line 3']['error'].startswith('not JSON')
    options = engines.opened[0].options
    assert options == {'rows': 3, 'slots': 1024, 'exact': True}
    assert {question.settings.max_new_tokens for question in engines.opened[0].asked} == {3}
    run = json.loads((place / 'out.run.json').read_text())
    assert run['complete'] == {'answers': 39, 'errors': 1, 'bytes': (place / 'out.jsonl').stat().st_size}
    assert run['settings']['model'] == str(folder)


def test_what_is_answered_is_not_asked_again(vipllava, folder, engines, place, monkeypatch):
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl')
    assert vipllava(*command).code == 1
    complete = (place / 'out.jsonl').read_bytes()
    kept = complete.splitlines(keepends=True)[:25]
    (place / 'out.jsonl').write_bytes(b''.join(kept) + b'{"id": "r1')
    assert vipllava(*command).code == 1
    assert len(engines.opened[1].asked) == 15
    assert (place / 'out.jsonl').read_bytes().startswith(b''.join(kept))
    assert sorted((place / 'out.jsonl').read_bytes().splitlines()) == sorted(complete.splitlines())
    monkeypatch.setattr(loading.Source, 'load', None)
    assert '39 answers and 1 error' in vipllava(*command).err
    again = vipllava(*command, '--retry-errors')  # the row is still broken, but no model is needed to see it
    assert (again.code, len(engines.opened)) == (1, 2)
    assert len(lines(place / 'out.jsonl')) == 40


def test_errors_are_retried(vipllava, folder, engines, place):
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl')
    engines.fails['What is 9?'] = QuestionError('the picture is damaged')
    assert '38 answers and 2 errors' in vipllava(*command).err
    engines.fails.clear()
    assert '38 answers and 2 errors' in vipllava(*command).err
    assert '39 answers and 1 error' in vipllava(*command, '--retry-errors').err
    assert [question.id for question in engines.opened[-1].asked] == ['r9']
    assert len({line['id'] for line in lines(place / 'out.jsonl')}) == 40


def test_a_run_without_errors_has_exit_code_0(vipllava, folder, engines, place):
    ran = vipllava('batch', '-', '--model', folder, '-o', 'out.jsonl', stdin=b'{"prompt": "Why?"}\n')
    assert ran.code == 0
    assert ran.err == 'vipllava: 1 answer is in out.jsonl\n'
    assert lines(place / 'out.jsonl')[0]['id'] == 'line 1'
    more = vipllava(
        'batch', '-', '--model', folder, '-o', 'out.jsonl', stdin=b'{"prompt": "Why?"}\n{"prompt": "x"}'
    )
    assert more.err == 'vipllava: 2 answers are in out.jsonl\n'
    assert len(engines.opened[1].asked) == 1


def test_a_folder_of_pictures_has_one_question(vipllava, folder, engines, place):
    for name in ('photos/b.png', 'photos/sub/a.jpg'):
        (place / name).parent.mkdir(exist_ok=True)
        noise(9, 9).save(place / name)
    command = ('batch', 'photos', '--model', folder, '-o', 'out.jsonl')
    ran = vipllava(*command, '--prompt', 'What is {mark}?', '--mark', 'point:0.5,0.5:red')
    assert ran.code == 0, ran.err
    assert {line['id'] for line in lines(place / 'out.jsonl')} == {'b.png', 'sub/a.jpg'}
    first = min(engines.opened[0].asked, key=lambda question: question.id)
    assert str(first.images[0]) == 'photos/b.png'
    assert first.marks[0].point == (0.5, 0.5)
    for extra, message in [
        ((), 'give the question about each of its pictures with --prompt'),
        (('--prompt', 'x', '--images', '.'), 'leave out --images'),
        (('--prompt', 'x', '--mark', 'star:1,1'), "unknown shape 'star'"),
    ]:
        refused = vipllava(*command, *extra)
        assert refused.code == 2
        assert message in refused.err


def test_parts_are_answered_and_merged(vipllava, folder, engines, place):
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl', '--temperature', 1)
    whole = vipllava(*command, '-o', 'whole.jsonl', '--seed', 1)
    assert whole.code == 1
    codes = [vipllava(*command, '--shard', f'{n}/3').code for n in range(3)]
    assert sorted(codes) == [0, 0, 1]
    merged = vipllava('batch', 'merge', 'out.jsonl', '--ordered', 'rows.jsonl')
    assert merged.code == 1
    assert merged.err == 'vipllava: 39 answers and 1 error are in out.jsonl\n'
    assert [line['id'] for line in lines(place / 'out.jsonl')] == [
        f'r{n}' if n != 2 else 'line 3' for n in range(40)
    ]
    again = vipllava(*command)
    assert '39 answers and 1 error' in again.err
    refused = vipllava(*command, '--shard', '0/2')
    assert refused.code == 2
    assert 'but now there are 2' in refused.err
    assert 'part by part' in vipllava('batch', 'merge', '--help').out


def test_a_row_draws_the_same_in_any_run(vipllava, folder, engines, place):
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl', '--temperature', 1)
    vipllava(*command)
    seeds = {question.id: question.settings.seed for question in engines.opened[0].asked}
    assert len({*seeds.values()}) == 39
    (place / 'out.jsonl').write_bytes(b''.join((place / 'out.jsonl').read_bytes().splitlines(True)[:20]))
    vipllava(*command)
    assert all(seeds[question.id] == question.settings.seed for question in engines.opened[1].asked)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('rows.jsonl', '-o', 'rows.jsonl'), 'is also read'),
        (('rows.jsonl', '-o', 'mine.jsonl'), 'is no file of answers, because there is no mine.run.json'),
        (('rows.jsonl', '-o', 'out.json'), 'ends in .jsonl'),
        (('rows.jsonl', '-o', 'model/out.jsonl'), 'which is read'),
        (('none.jsonl', '-o', 'out.jsonl'), "no file or folder 'none.jsonl'"),
        (('rows.jsonl', '-o', 'none/out.jsonl'), 'there is no folder'),
        (('rows.jsonl', '-o', 'out.jsonl', '--images', 'none'), "no folder of pictures 'none'"),
        (('rows.jsonl', '-o', 'out.jsonl', '--model', 'none'), 'none'),
        (('rows.jsonl', '-o', 'out.jsonl', '--shard', '3/2'), '--shard'),
        (('rows.jsonl', '-o', 'out.jsonl', '--beams', '3'), 'No such option'),
        (('rows.jsonl', '-o', 'out.jsonl', '--temperature', 'hot'), '--temperature'),
        (('rows.jsonl',), "Missing option '-o'"),
        (('merge', 'out.jsonl'), 'out.jsonl has no parts'),
        (('-', '-o', 'out.jsonl'), 'stdin'),
    ],
)
def test_mistakes_are_refused_before_work(vipllava, folder, engines, place, arguments, message):
    (place / 'model').symlink_to(folder)
    (place / 'mine.jsonl').write_text('{"id": "a", "answer": "b"}\n')
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    model = () if '--model' in arguments or 'merge' in arguments else ('--model', 'model')
    ran = vipllava('batch', *arguments, *model)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err
    assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    assert not engines.opened


def test_other_settings_are_refused_with_advice(vipllava, folder, engines, place):
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl')
    vipllava(*command)
    before = (place / 'out.jsonl').read_bytes()
    for changed, message in [
        (('--max-new-tokens', 9), 'max_new_tokens was not given and is 9'),
        (('--fit', 'pad'), 'fit was not given and is pad'),
        (('--dtype', 'bfloat16'), 'dtype was float32 and is bfloat16'),
    ]:
        ran = vipllava(*command, *changed)
        assert ran.code == 2
        assert message in ran.err
        assert 'another name for the output' in ran.err
    with (place / 'rows.jsonl').open('a') as file:
        file.write('{"prompt": "one more"}\n')
    assert 'other rows in the data' in vipllava(*command).err
    assert (place / 'out.jsonl').read_bytes() == before


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_answered(vipllava, folder, engines, place, number, code, request):
    class Interrupting(dict):
        count = 0

        def get(self, key):
            self.count += 1
            if self.count == 1000:  # more than are asked ahead, so that lines are written
                os.kill(os.getpid(), number)
            return None

    before = signal.signal(number, signal.default_int_handler)  # a shell's background job ignores SIGINT
    request.addfinalizer(lambda: signal.signal(number, before))
    engines.fails = Interrupting()
    rows = [json.dumps({'id': f'{n}', 'prompt': f'{n}'}) for n in range(5000)]
    (place / 'rows.jsonl').write_text('\n'.join(rows))
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl')
    ran = vipllava(*command)
    assert ran.code == code
    count = len(lines(place / 'out.jsonl'))
    assert 0 < count < 5000
    assert f'stopped by {signal.Signals(number).name}: the {count:,} lines so far are in out.jsonl' in ran.err
    assert signal.getsignal(number) == signal.default_int_handler
    engines.fails = {}
    assert vipllava(*command).code == 0
    assert len({line['id'] for line in lines(place / 'out.jsonl')}) == 5000


def test_an_engine_that_fails_keeps_what_is_answered(vipllava, folder, engines, place):
    engines.fails['What is 30?'] = RuntimeError('RESOURCE_EXHAUSTED: out of memory')
    ran = vipllava('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl')
    assert ran.code == 2
    first, second = ran.err.splitlines()[-2:]
    assert f'the {len(lines(place / "out.jsonl"))} lines so far are in out.jsonl' in first
    assert 'the device does not have enough memory' in second


def test_a_fault_of_the_engine_has_another_exit_code_than_error_lines(vipllava, folder, engines, place):
    engines.fails['What is 30?'] = TypeError('a fault')
    ran = vipllava('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl')
    assert ran.code == 2
    assert f'the {len(lines(place / "out.jsonl"))} lines so far are in out.jsonl' in ran.err
    assert 'TypeError: a fault' in ran.err


def test_requests_of_openai_are_answered_resumed_retried_and_merged(vipllava, folder, engines, place):
    def request(n):
        body = {'model': 'x', 'messages': [{'role': 'user', 'content': f'What is {n}?'}]}
        return {'custom_id': f'r{n}', 'method': 'POST', 'url': '/v1/chat/completions', 'body': body}

    rows = [request(n) for n in range(20)]
    rows[3]['method'] = 'GET'
    (place / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    engines.kind = ReplyingEngine
    engines.fails = {'What is 5?': QuestionError('the picture is damaged')}
    command = ('batch', 'rows.jsonl', '--model', folder, '-o', 'out.jsonl', '--temperature', 1)
    ran = vipllava(*command)
    assert (ran.code, len(engines.opened[0].asked)) == (1, 19)
    assert '18 answers and 2 errors are in out.jsonl' in ran.err
    found = {line['custom_id']: line for line in lines(place / 'out.jsonl')}
    assert len(found) == 20
    assert found['r3']['error']['code'] == 'invalid_row'
    assert found['r5']['response']['body']['error']['message'] == 'the picture is damaged'
    assert found['r7']['response']['body']['choices'][0]['finish_reason'] == 'stop'
    assert len({question.settings.seed for question in engines.opened[0].asked}) == 19
    kept = (place / 'out.jsonl').read_bytes().splitlines(keepends=True)[:12]
    (place / 'out.jsonl').write_bytes(b''.join(kept))
    assert vipllava(*command).code == 1
    engines.fails = {}
    assert '19 answers and 1 error' in vipllava(*command, '--retry-errors').err
    assert [*map(len, (engine.asked for engine in engines.opened[2:]))] == [1]
    for n in range(2):
        vipllava(*command, '-o', 'parts.jsonl', '--shard', f'{n}/2')
    merged = vipllava('batch', 'merge', 'parts.jsonl', '--ordered', 'rows.jsonl')
    assert merged.err == 'vipllava: 19 answers and 1 error are in parts.jsonl\n'
    assert [line['custom_id'] for line in lines(place / 'parts.jsonl')] == [f'r{n}' for n in range(20)]


def test_the_help_shows_examples(vipllava):
    ran = vipllava('batch', '--help')
    assert ran.code == 0
    assert ran.out.count('\n  vipllava batch ') + ran.out.count('    vipllava batch ') >= 4
