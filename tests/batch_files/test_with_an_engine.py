"""Batches of a real engine: the answers are those of `answer`, and SIGKILL loses or repeats no line."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import vipllava_jax as vj
from tests.makers import noise
from vipllava_jax.engine.engine import Engine

SETTINGS = vj.GenerationSettings(max_new_tokens=6)
SMALL = {'rows': 2, 'slots': 256, 'long_rows': 0, 'workers': 0}


@pytest.fixture
def place(tmp_path, folder):
    """A folder with the model, pictures, and rows.jsonl with 60 rows, of which two are errors."""
    (tmp_path / 'model').symlink_to(folder)
    rows = []
    for n in range(60):
        noise(40, 30, seed=n % 7).save(tmp_path / f'{n % 7}.png')
        marks = [f'{("arrow", "ellipse")[n % 2]}:8,5,30,25:red']
        row = {'id': f'q-{n}', 'image': f'{n % 7}.png', 'marks': marks, 'prompt': f'What is {{mark}}, {n}?'}
        rows.append(row if n % 5 else {'id': f'q-{n}', 'prompt': f'What is {n}?'})
    rows[8]['image'] = 'none.png'
    rows[9]['marks'] = ['arrow:900,900,910,910']
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_answers_are_those_of_answer(folder, place):
    model, rows = vj.load(folder), lines(place / 'rows.jsonl')[:12]
    with Engine(model, **SMALL) as engine:
        found = [*vj.answers(engine, rows, images=place, settings=SETTINGS, ordered=True)]
        assert [line['id'] for line in found] == [row['id'] for row in rows]
        assert {line['id'] for line in found if 'error' in line} == {'q-8', 'q-9'}
        for row, line in zip(rows[:8], found, strict=False):
            image = place / row['image'] if 'image' in row else None
            marks = row.get('marks', ())
            assert line['answer'] == vj.answer(model, row['prompt'], image, marks=marks, settings=SETTINGS)
        drawn = vj.GenerationSettings(max_new_tokens=6, temperature=1.0, seed=1, num_return_sequences=2)
        first, again = ([*vj.answers(engine, rows[:3], images=place, settings=drawn)] for _ in range(2))
        key = lambda line: line['id']  # noqa: E731
        assert sorted(first, key=key) == sorted(again, key=key)
        assert len({text for line in first for text in line['answers']}) > 3
        assert engine.stats().compilations == 0


def start(place, *arguments):
    """The command in a process of its own, whose output goes to a file."""
    command = ['batch', 'rows.jsonl', '--model', 'model', '-o', 'out.jsonl', '--max-new-tokens', '6']
    with (place / 'err').open('wb') as err:
        return subprocess.Popen(
            [sys.executable, '-m', 'vipllava_jax', *command, '--rows', '2', '--slots', '256', *arguments],
            cwd=place,
            stderr=err,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        )


def size(path):
    return path.stat().st_size if path.exists() else 0


def kill_and_resume(place, count):
    """Kills the command `count` times while it writes, then lets it end; checks the lines each time."""
    rng, output = random.Random(count), place / 'out.jsonl'
    for _ in range(count):
        before = size(output)
        process = start(place)
        while size(output) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        kept = output.read_bytes()
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = output.read_bytes()
        assert after.startswith(kept[: kept.rfind(b'\n') + 1])
        for line in after[: after.rfind(b'\n') + 1].splitlines():
            json.loads(line)
    assert start(place).wait() == 1, (place / 'err').read_text()
    found = lines(output)
    assert len(found) == 60
    assert {line['id'] for line in found} == {f'q-{n}' for n in range(60)}
    assert {line['id'] for line in found if 'error' in line} == {'q-8', 'q-9'}
    assert sorted(path.name for path in place.glob('out*')) == ['out.jsonl', 'out.run.json']
    return {line['id']: line for line in found}


@pytest.mark.slow
def test_five_kills_lose_and_repeat_no_line(place):
    kill_and_resume(place, 5)


@pytest.mark.by_hand
def test_twenty_kills_lose_and_repeat_no_line(place):
    interrupted = kill_and_resume(place, 20)
    for name in ('out.jsonl', 'out.run.json'):
        (place / name).unlink()
    assert start(place).wait() == 1
    assert {line['id']: line for line in lines(place / 'out.jsonl')} == interrupted
