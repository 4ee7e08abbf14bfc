"""Every command, ended at a random time by Ctrl-C or SIGKILL, loses nothing and leaves no partial files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

MARK = '--mark rectangle:20,10,60,50:red'
# A shell starts background jobs with SIGINT ignored, and the command does not change that.
START = (
    'import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); '
    'os.execv(sys.executable, [sys.executable, "-m", "vipllava_jax", *sys.argv[1:]])'
)


class Case(NamedTuple):
    """A command line, the files that it writes, and about how many seconds it takes without a signal."""

    line: str
    writes: tuple[str, ...] = ()
    seconds: float = 3.0


CASES = {
    'demo': Case('demo --seed 1 --output demo.png', ('demo.png',), 5),
    'ask': Case(
        f'ask --model model --image photo.png {MARK} --save-image out.png --json hi', ('out.png',), 4
    ),
    'draw': Case(f'draw photo.png out.png {MARK}', ('out.png',), 0.4),
    'convert': Case('convert model converted', ('converted',), 4),
    'convert again': Case('convert pytorch old --overwrite', ('old',), 4),
    'train': Case(
        'train --model model --data rows.json --output run --recipe projector --batch 2 --steps 3 '
        '--save-every 1 --workers 0',
        ('run',),
        12,
    ),
    'eval': Case(
        'eval --model model --data held-out.jsonl --json table.json --max-new-tokens 2 --batch 2',
        ('table.json', 'held-out.answers.jsonl'),
        5,
    ),
    'bench': Case(
        'bench --preset tiny --what vision,convert --batch 1 --repeats 3 --json speed.json',
        ('speed.json',),
        8,
    ),
    'info': Case('info --model model --json', (), 2),
}


@pytest.fixture
def place(folder, source, tmp_path, monkeypatch) -> Path:
    """A folder with everything that the commands read, and with earlier results."""
    for name, target in (('model', folder), ('pytorch', source)):
        (tmp_path / name).symlink_to(target)
    subprocess.run(['cp', '-r', folder, tmp_path / 'old'], check=True)
    Image.new('RGB', (90, 60), (10, 120, 200)).save(tmp_path / 'photo.png')
    (tmp_path / 'out.png').write_bytes((tmp_path / 'photo.png').read_bytes())
    (tmp_path / 'table.json').write_text('{"before": true}')
    rows = [{'image': 'photo.png', 'question': f'What {n}?', 'answer': 'a star'} for n in range(6)]
    (tmp_path / 'held-out.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    turns = [{'from': 'human', 'value': '<image>\nWhat?'}, {'from': 'gpt', 'value': 'a star'}]
    (tmp_path / 'rows.json').write_text(json.dumps([{'image': 'photo.png', 'conversations': turns}] * 6))
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    return tmp_path


def run_and_signal(place: Path, case: Case, number: int, after: float) -> subprocess.CompletedProcess[bytes]:
    """Runs the command, and sends a signal after some seconds unless it has ended before."""
    process = subprocess.Popen(
        [sys.executable, '-c', START, *case.line.split()],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    time.sleep(after)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(case.line, process.returncode, out, err)


def contents(place: Path, but: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of a folder by path, without the files that a command writes."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob('*'))
        if path.is_file() and path.relative_to(place).parts[0] not in but
    }


def check_results(place: Path) -> None:
    """Checks that results are either the earlier ones or complete new ones."""
    from vipllava_jax import loading

    for picture in place.glob('*.png'):
        with Image.open(picture) as opened:
            opened.load()
    for table in place.glob('*.json'):
        json.loads(table.read_text())
    for model in ('old', 'converted', 'run/model'):
        if (place / model).exists():
            assert len(list(loading.open(place / model).leaves())) > 50


def leftovers(place: Path) -> list[str]:
    """Hidden files next to the results, and everything in the folder for temporary files."""
    return [str(path.relative_to(place)) for path in place.rglob('.*') if path.name not in ('.lock',)] + [
        *os.listdir(place / 'tmp')
    ]


def interrupt(place: Path, name: str, after: float) -> None:
    case, before = CASES[name], contents(place, CASES[name].writes)
    taken = (place / 'converted').exists()  # by a conversion that was complete before its signal came
    ran = run_and_signal(place, case, signal.SIGINT, after)
    if b'KeyboardInterrupt' in ran.stderr and b'vipllava_jax/' not in ran.stderr:
        return  # Python was still starting and had run none of the command's code
    codes = {-signal.SIGINT, 2 if taken else 0, 130 if name == 'train' else 0}
    assert ran.returncode in codes, (after, ran)
    assert b'Traceback' not in ran.stderr, (after, ran.stderr.decode())
    assert contents(place, case.writes) == before, after
    assert not leftovers(place), after
    check_results(place)


def kill(place: Path, name: str, after: float) -> None:
    case, before = CASES[name], contents(place, CASES[name].writes)
    run_and_signal(place, case, signal.SIGKILL, after)
    kept = contents(place, case.writes)
    assert before.items() <= kept.items(), after
    check_results(place)
    if name in ('convert', 'convert again', 'train', 'eval') and not (place / 'converted').exists():
        again = run_and_signal(place, case, signal.SIGCONT, 0)
        assert again.returncode == 0, (after, again.stderr.decode())
        check_results(place)
        assert not [path for path in leftovers(place) if not path.startswith('tmp')], after


def random_times(name: str, count: int) -> list[float]:
    """Random times in seconds after the start of a command, spread over its run time."""
    rng = random.Random(name)
    return [0.05 + (n + rng.random()) / count * CASES[name].seconds for n in range(count)]


@pytest.mark.parametrize(
    'count', [pytest.param(1, marks=pytest.mark.slow), pytest.param(23, marks=pytest.mark.by_hand)]
)
@pytest.mark.parametrize('end', [interrupt, kill])
@pytest.mark.parametrize('name', CASES)
def test_ending_at_random_times(place, name, end: Callable[..., None], count):
    for after in random_times(name, count):
        end(place, name, after)
