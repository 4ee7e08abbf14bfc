"""`vipllava eval` as a user runs it: table, files, resuming after SIGKILL, errors before loading."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import vipllava_jax as vj
from tests.makers import noise
from tests.worlds import of_all_types, rows
from vipllava_jax import loading
from vipllava_jax.demo.question_types import TYPES
from vipllava_jax.evaluation import evaluate


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Twenty questions about pictures, in the working directory of the command."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for n in range(20):
        noise(40, 30, seed=n).save(tmp_path / f'{n}.png')
        marks = [f'{("arrow", "ellipse")[n % 2]}:4,5,20,25:red']
        row = {'id': f'q-{n}', 'image': f'{n}.png', 'marks': marks, 'question': 'What is <bbox>?'}
        rows.append({**row, 'answer': ['x', 'y'], 'type': 'ab'[n // 10], 'pair': n // 2})
    file = tmp_path / 'held-out.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return file


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


SHORT = ('--max-new-tokens', 3)


def test_the_table_is_printed_and_the_answers_are_written(vipllava, folder, data, tmp_path):
    command = ('eval', '--model', folder, '--data', 'held-out.jsonl', *SHORT, '--batch', 8, '--fit', 'pad')
    ran = vipllava(*command, '--by', 'type', '--together', 'pair', '--json', 'table.json')
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [
        '              n  correct  accuracy  95 % interval',
        'rows         20        0      0.0%  0.0% to 16.1%',
        'pair         10        0      0.0%  0.0% to 27.8%',
        'type a       10        0      0.0%  0.0% to 27.8%',
        'type b       10        0      0.0%  0.0% to 27.8%',
    ]
    first, second = ran.err.splitlines()
    assert first.startswith('answers 20/20  ')
    assert second == 'vipllava: 20 answers were cut off: see --max-new-tokens'
    settings, *answers = lines(tmp_path / 'held-out.answers.jsonl')
    library = evaluate(vj.load(folder), data, max_new_tokens=3, fit='pad')
    assert sorted(answers, key=lambda answer: answer['n']) == library.answers
    table = json.loads((tmp_path / 'table.json').read_text())
    assert table['settings'] == settings['settings']
    assert table['settings']['model'] == str(folder)
    assert (table['answers'], table['left_out'], table['cut_off']) == (20, 0, library.cut_off)
    assert table['scores'][2]['group'] == 'type a'
    assert table['scores'][2]['high'] == pytest.approx(0.2775, abs=1e-4)


@pytest.mark.slow
def test_the_demo_model_is_mostly_right(vipllava, tmp_path):
    """At 90 % accuracy, fewer than 10 right answers of 16 have a probability of about 0.001."""
    with (tmp_path / 'types.jsonl').open('w') as file:
        file.writelines(json.dumps(row) + '\n' for row in rows(tmp_path, of_all_types(1)))
    ran = vipllava(
        'eval',
        *('--model', 'demo', '--dtype', 'float32', '--data', tmp_path / 'types.jsonl', '--by', 'type'),
        *('--output', tmp_path / 'answers.jsonl', '--json', tmp_path / 'table.json'),
    )
    assert ran.code == 0, ran.err
    every, *types = json.loads((tmp_path / 'table.json').read_text())['scores']
    assert {score['group']: score['n'] for score in types} == {f'type {type}': 1 for type in TYPES}
    assert every['n'] == 16
    assert every['correct'] >= 10


def visual7w(folder, count):
    """Rows of Visual7W about the pictures 0.png to 19.png."""
    boxes = [[4, 5, 20, 25], [0, 0, 9, 9], [10, 2, 30, 8], [3, 3, 30, 20]]
    rows = [
        {'id': f'v7w-{n}', 'image': f'{n}.png', 'bboxes': boxes, 'question': f'{n}?', 'answer': boxes[n % 4]}
        for n in range(count)
    ]
    (folder / 'v7w.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return rows


@pytest.mark.slow
def test_the_likeliest_options_are_counted_beside_the_answers(vipllava, folder, data, tmp_path, monkeypatch):
    rows = visual7w(tmp_path, 6)
    command = ('eval', '--model', folder, *SHORT, '--choose')
    ran = vipllava(*command, '--data', 'v7w.jsonl', '--json', 'table.json')
    assert ran.code == 0, ran.err
    result = evaluate(vj.load(folder), rows, images=tmp_path, max_new_tokens=3, choose=True)
    assert [line.split('  ')[0] for line in ran.out.splitlines()[1:]] == ['Visual7W', 'Visual7W, chosen']
    table = json.loads((tmp_path / 'table.json').read_text())
    assert table['scores'][1]['correct'] == result.scores[1].correct
    assert table['settings']['choose'] is True
    assert [answer['choice'] for answer in result.answers] == [
        answer['choice'] for answer in lines(tmp_path / 'v7w.answers.jsonl')[1:]
    ]
    monkeypatch.setattr(loading.Source, 'load', None)
    assert vipllava(*command, '--data', 'v7w.jsonl').out == ran.out
    for files, message in [
        (['held-out.jsonl'], 'line 1: the questions of rows have no options to choose from'),
        (['v7w.jsonl', 'held-out.jsonl'], 'line 1: the questions of rows have no options to choose from'),
    ]:
        named = [word for file in files for word in ('--data', file)]
        refused = vipllava(*command, *named, '--output', 'new.jsonl')
        assert (refused.code, refused.out, refused.err.count('\n')) == (2, '', 1)
        assert message in refused.err
        assert not (tmp_path / 'new.jsonl').exists()


@pytest.mark.slow
def test_parts_in_which_options_are_chosen_are_merged(vipllava, folder, data, tmp_path):
    visual7w(tmp_path, 12)
    command = ('eval', '--model', folder, *SHORT, '--choose', '--data', 'v7w.jsonl')
    whole = vipllava(*command)
    for part in ('0/2', '1/2'):
        ran = vipllava(*command, '--output', 'parts.jsonl', '--shard', part)
        assert ran.code == 0, ran.err
    assert ran.out == whole.out
    merged = vipllava(*command, '--output', 'parts.jsonl', '--merge', '2')
    assert merged.out == whole.out
    refused = vipllava(*command[:-3], '--data', 'v7w.jsonl', '--output', 'parts.jsonl', '--merge', '2')
    assert 'choose was True and is not given' in refused.err


def test_a_mark_that_the_crop_cuts_off_is_one_warning(vipllava, folder, data):
    ran = vipllava('eval', '--model', folder, '--data', data, *SHORT)
    assert ran.err.count('the crop cuts off the mark') == 1
    assert 'see --fit pad' in ran.err


def test_existing_answers_are_not_asked_again(vipllava, folder, data, monkeypatch):
    command = ('eval', '--model', folder, '--data', data, *SHORT)
    first = vipllava(*command)
    assert first.code == 0, first.err
    monkeypatch.setattr(loading.Source, 'load', None)
    assert vipllava(*command, '--batch', 3).out == first.out
    assert 'type b' in vipllava(*command, '--by', 'type').out


SLOW_EVAL = """
import sys, time
from vipllava_jax.cli import main
from vipllava_jax.evaluation import journal

append = journal._append

def slowly(path, file, records):
    append(path, file, records)
    time.sleep(0.3)

journal._append = slowly
main()
"""


@pytest.mark.slow
def test_a_killed_evaluation_resumes_and_loses_at_most_a_batch(vipllava, folder, data, tmp_path):
    command = ('eval', '--model', folder, '--data', 'held-out.jsonl', *SHORT, '--batch', '4')
    path = tmp_path / 'held-out.answers.jsonl'
    counts = []
    for line_count in (3, 11):
        arguments = [sys.executable, '-c', SLOW_EVAL, *map(str, command)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            while running.poll() is None and (
                not path.exists() or path.read_bytes().count(b'\n') < line_count
            ):
                time.sleep(0.01)
            running.kill()
            assert (running.wait(), running.stdout.read()) == (-signal.SIGKILL, b'')
        counts.append(path.read_bytes().count(b'\n') - 1)
    assert counts[0] >= 4 - 1
    assert counts[0] < counts[1] < 20
    kept = path.read_bytes()
    uninterrupted = vipllava(*command, '--output', 'whole.jsonl')
    ran = vipllava(*command)
    assert (ran.code, ran.out) == (0, uninterrupted.out)
    assert path.read_bytes().startswith(kept)
    assert sorted(path.read_bytes().split(b'\n')) == sorted(
        (tmp_path / 'whole.jsonl').read_bytes().split(b'\n')
    )


@pytest.mark.slow
def test_another_model_or_other_settings_are_refused(vipllava, folder, adapter, data, monkeypatch):
    command = ('eval', '--model', folder, '--data', data, *SHORT)
    assert vipllava(*command).code == 0
    load = loading.Source.load
    monkeypatch.setattr(loading.Source, 'load', None)
    for more, message in [
        (('--adapter', adapter), f'adapter was not given and is {adapter}'),
        (('--quantize', 'int8'), 'quantize was not given and is int8'),
        (('--template', 'plain'), 'template was vipllava and is plain'),
        (('--fit', 'pad'), 'fit was not given and is pad'),
    ]:
        ran = vipllava(*command, *more)
        assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
        assert message in ran.err
        assert '--restart' in ran.err
    config = next(path for path in folder.iterdir() if path.is_file())
    found = config.stat()
    os.utime(config, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))
    try:
        assert '(other weights in the model)' in vipllava(*command).err
    finally:
        os.utime(config, ns=(found.st_atime_ns, found.st_mtime_ns))
    monkeypatch.setattr(loading.Source, 'load', load)
    ran = vipllava(*command, '--quantize', 'int8', '--adapter', adapter, '--restart')
    assert ran.code == 0, ran.err
    texts = [answer['answer'] for answer in lines(data.with_name('held-out.answers.jsonl'))[1:]]
    model = vj.load(folder, quantize='int8', adapter=adapter)
    assert sorted(texts) == sorted(a['answer'] for a in evaluate(model, data, max_new_tokens=3).answers)


def test_answers_to_vip_bench_are_written_for_its_evaluator(vipllava, folder, data, tmp_path):
    rows = [{'question_id': n, 'image': f'{n}.png', 'text': 'What is it?'} for n in range(3)]
    (tmp_path / 'questions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    command = ('eval', '--model', folder, '--data', 'questions.jsonl', *SHORT, '--output', 'mine.jsonl')
    ran = vipllava(*command)
    assert (ran.code, ran.out) == (0, 'mine.vip-bench.json: for the evaluator of ViP-Bench\n')
    table = json.loads((tmp_path / 'mine.vip-bench.json').read_text())
    assert [*table] == ['v1_0', 'v1_1', 'v1_2']
    model = vj.load(folder)
    batch = model.processor('What is it?', '1.png', fit='pad')
    out = vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=3)
    assert table['v1_1'] == model.processor.decode(out)[0]
    assert vipllava(*command, '--vip-bench', 'other.json').code == 0
    assert json.loads((tmp_path / 'other.json').read_text()) == table


def test_broken_rows_are_errors_or_left_out(vipllava, folder, data, monkeypatch):
    with data.open('a') as file:
        file.write('{"image": "none.png", "question": "What?", "answer": "x"}\n')
    command = ('eval', '--model', folder, '--data', data, *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(loading.Source, 'load', None)
        ran = vipllava(*command)
    assert (ran.code, ran.out) == (2, '')
    assert f"{data}, line 21: no picture at '{data.parent}/none.png'" in ran.err
    ran = vipllava(*command, '--skip-broken')
    assert ran.code == 0
    assert 'left out: ' in ran.err
    assert re.search(r'rows +20 ', ran.out)


def test_the_first_broken_rows_are_listed_one_per_line(vipllava, folder, data):
    with data.open('a') as file:
        file.write('{"question": "What?"}\n' * 25)
    ran = vipllava('eval', '--model', folder, '--data', data)
    assert (ran.code, ran.out) == (2, '')
    first, *rows, last = ran.err.splitlines()
    assert first == '25 of 45 rows are broken, the first 20 of them:'
    assert [line.split(': ')[0] for line in rows] == [f'{data}, line {n}' for n in range(21, 41)]
    assert last.startswith('vipllava: fix them')


def files(data, folder):
    return data.read_bytes(), {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_question_longer_than_the_context_is_an_error_or_left_out(vipllava, folder, data, monkeypatch):
    with data.open('a') as file:
        file.write(json.dumps({'question': 'What? ' * 900, 'answer': 'x'}) + '\n')
    command = ('eval', '--model', folder, '--data', data, *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(loading.Source, 'load', None)
        ran = vipllava(*command)
    assert (ran.code, ran.out) == (2, '')
    (line,) = ran.err.splitlines()  # one line for one broken row
    place = f'vipllava: 1 of 21 questions are broken: {data}, line 21: '
    assert re.match(rf'{place}a prompt of \d+ tokens and 3 new ones exceed the context of 1024', line)
    for _ in range(2):  # the second time, all other rows have answers
        ran = vipllava(*command, '--skip-broken', '--json', 'table.json')
        assert ran.code == 0, ran.err
        assert 'left out: ' in ran.err
        assert 'line 21' in ran.err
        assert re.search(r'rows +20 ', ran.out)
        assert json.loads((data.parent / 'table.json').read_text())['left_out'] == 1


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], "Missing option '--data'"),
        (['--data', 'none.jsonl'], 'none.jsonl'),
        (['--data', 'held-out.jsonl', '--by', 'kind'], "no row has the field 'kind'"),
        (['--data', 'held-out.jsonl', '--images', 'nowhere'], 'nowhere'),
        (['--data', 'held-out.jsonl', '--output', 'held-out.jsonl'], 'is also read'),
        (['--data', 'held-out.jsonl', '--output', 'link.jsonl'], 'is also read'),
        (['--data', 'held-out.jsonl', '--output', 'hard.jsonl'], 'is also read'),
        (['--data', 'held-out.jsonl', '--json', './held-out.jsonl'], '--json held-out.jsonl is also read'),
        (['--data', 'link.jsonl', '--json', 'held-out.jsonl'], 'is also read'),
        (['--data', 'held-out.jsonl', '--vip-bench', 'hard.jsonl'], 'is also read'),
        (['--data', 'held-out.jsonl', '--json', '3.png'], 'is also read'),
        (['--data', 'held-out.jsonl', '--json', 'none/x.json'], 'there is no folder'),
        (['--data', 'held-out.jsonl', '--json', '.'], 'is a folder'),
        (['--data', 'held-out.jsonl', '--output', 'x', '--json', 'link-to-x'], 'are one file'),
        (['--data', 'held-out.jsonl', '--output', 'MODEL/answers.jsonl'], 'which is read'),
        (['--data', 'held-out.jsonl', '--json', 'MODEL/config.json'], 'which is read'),
        (['--data', 'held-out.jsonl', '--json', 'model-link/new.json'], 'which is read'),
        (['--data', 'held-out.jsonl', '--output', 'x.json', '--json', 'x.json'], 'are one file'),
        (['--data', 'held-out.jsonl', '--max-new-tokens', '5000'], 'would exceed the 1024 tokens'),
        (['--data', 'held-out.jsonl', '--template', 'checkpoint'], 'no chat template'),
        (['--data', 'held-out.jsonl', '--adapter', '/nowhere'], '/nowhere: no adapter'),
        (['--data', 'held-out.jsonl', '--batch', '0'], '--batch'),
    ],
)
def test_an_invalid_argument_is_one_line_before_loading(vipllava, folder, data, monkeypatch, args, message):
    monkeypatch.setattr(loading.Source, 'load', None)
    (data.parent / 'link.jsonl').symlink_to(data)
    (data.parent / 'hard.jsonl').hardlink_to(data)
    (data.parent / 'link-to-x').symlink_to('x')
    (data.parent / 'model-link').symlink_to(folder)
    before = files(data, folder)
    args = [word.replace('MODEL', str(folder)) for word in args]
    code, out, err = vipllava('eval', '--model', folder, *args)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert message in err
    assert before == files(data, folder)
