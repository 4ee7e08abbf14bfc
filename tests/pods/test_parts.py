"""`vipllava eval --shard` and `--merge`: parts answered by independent processes, put together at the end."""

import json
import shutil

import pytest

from tests.cli.test_eval import lines
from vipllava_jax import loading
from vipllava_jax.row_shards import Shard

SHORT = ('--max-new-tokens', 2, '--fit', 'pad')


@pytest.fixture
def command(folder, data):
    return ('eval', '--model', folder, '--data', data, '--output', 'out.jsonl', *SHORT)


@pytest.mark.slow
def test_the_last_part_counts_all_answers(vipllava, command, data, tmp_path):
    whole = vipllava(*command, '--output', 'whole.jsonl', '--by', 'type', '--json', 'whole.json')
    assert whole.code == 0, whole.err
    table = ('--by', 'type', '--json', 'table.json')
    first = vipllava(*command, *table, '--shard', '1/2')
    assert first.code == 0, first.err
    _, *answers = lines(tmp_path / 'out.1-of-2.jsonl')
    expected = [n for n in range(20) if Shard(1, 2).holds(f'q-{n}')]
    assert sorted(answer['n'] for answer in answers) == expected
    assert f'part 1/2: {len(expected)} answers in out.1-of-2.jsonl; 1 of 2 parts have no file' in first.err
    assert first.out.splitlines()[1].split()[:2] == ['rows', str(len(expected))]
    assert not (tmp_path / 'table.json').exists()
    last = vipllava(*command, *table, '--shard', '0/2')
    assert (last.code, last.out) == (0, whole.out)
    assert 'all 2 parts are complete' in last.err
    scores = json.loads((tmp_path / 'table.json').read_text())['scores']
    assert scores == json.loads((tmp_path / 'whole.json').read_text())['scores']
    by_number = sorted(lines(tmp_path / 'out.0-of-2.jsonl')[1:] + answers, key=lambda answer: answer['n'])
    assert by_number == sorted(lines(tmp_path / 'whole.jsonl')[1:], key=lambda answer: answer['n'])


@pytest.mark.slow
def test_merge_writes_the_file_of_a_single_process(vipllava, command, tmp_path, monkeypatch):
    for index in range(3):
        assert vipllava(*command, '--shard', f'{index}/3').code == 0
    monkeypatch.setattr(loading.Source, 'load', None)  # no part is asked again
    merged = vipllava(*command, '--merge', 3)
    assert merged.code == 0, merged.err
    assert merged.err.startswith('vipllava: 20 answers of 3 parts are in out.jsonl\n')
    settings, *answers = lines(tmp_path / 'out.jsonl')
    assert [answer['n'] for answer in answers] == [*range(20)]
    assert 'shard' not in settings['settings']
    for again in (('--merge', 3), ()):
        ran = vipllava(*command, *again)
        assert (ran.code, ran.out) == (0, merged.out)
    resumed = vipllava(*command, '--shard', '2/3')
    assert (resumed.code, resumed.out) == (0, merged.out)


@pytest.mark.slow
def test_missing_and_incomplete_parts_are_named(vipllava, command, tmp_path):
    assert vipllava(*command, '--shard', '0/3').code == 0
    ran = vipllava(*command, '--merge', 3)
    assert (ran.code, ran.out) == (2, '')
    assert '2 of 3 parts have no file: give --shard 1/3, 2/3' in ran.err
    for index in (1, 2):
        assert vipllava(*command, '--shard', f'{index}/3').code == 0
    part = tmp_path / 'out.1-of-3.jsonl'
    part.write_bytes(part.read_bytes()[:-5])
    ran = vipllava(*command, '--merge', 3)
    assert (ran.code, ran.out) == (2, '')
    assert '1 of 3 parts lack answers: give --shard 1/3' in ran.err
    ran = vipllava(*command, '--shard', '0/3')
    assert ran.code == 0
    assert 'part 0/3: ' in ran.err
    assert '1 of 3 parts lack answers: give --shard 1/3' in ran.err
    assert vipllava(*command, '--shard', '1/3').code == 0
    assert vipllava(*command, '--merge', 3).code == 0


@pytest.mark.slow
def test_parts_of_copies_of_the_files_on_several_computers_fit(vipllava, folder, data, tmp_path, monkeypatch):
    """Rows without ids, in other folders, with other times of the model's files."""
    rows = [{key: value for key, value in row.items() if key != 'id'} for row in lines(data)]
    outputs = tmp_path / 'outputs'
    for index in range(2):
        place = tmp_path / f'computer-{index}'
        place.mkdir()
        monkeypatch.chdir(place)
        (place / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        shutil.copytree(folder, place / 'model', copy_function=shutil.copy)
        given = [place / 'rows.jsonl', 'rows.jsonl'][index]
        ran = vipllava(
            *('eval', '--model', './model', '--data', given, '--images', tmp_path, *SHORT),
            *('--output', outputs / 'out.jsonl', '--shard', f'{index}/2'),
        )
        assert ran.code == 0, ran.err
    assert 'all 2 parts are complete' in ran.err
    assert len(lines(outputs / 'out.0-of-2.jsonl')) + len(lines(outputs / 'out.1-of-2.jsonl')) == 22


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--shard', '4/4'), "--shard: '4', expected a whole number"),
        (('--shard', 'auto'), 'none of JOB_COMPLETION_INDEX'),
        (('--shard', '0/8'), 'out.0-of-4.jsonl holds one of 4 parts, but now there are 8'),
        (('--merge', '8'), 'out.0-of-4.jsonl holds one of 4 parts, but now there are 8'),
        (('--merge', '0'), '--merge'),
        (('--merge', '4', '--shard', '0/4'), 'give one of them'),
        (('--shard', '0/4', '--distributed', 'on'), 'do not join: leave out --distributed'),
        (('--merge', '4', '--process-index', '0'), 'do not join: leave out --process-index'),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(vipllava, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'out.0-of-4.jsonl').write_text('')
    monkeypatch.setattr(loading, 'locate', None)
    ran = vipllava('eval', '--data', 'missing.jsonl', '--output', 'out.jsonl', *options)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err
    assert (tmp_path / 'out.0-of-4.jsonl').read_text() == ''


def test_damaged_pictures_that_were_left_out_do_not_keep_a_part_open(vipllava, command, data, tmp_path):
    picture = data.parent / '3.png'
    picture.write_bytes(picture.read_bytes()[:-400])
    for index in range(2):
        ran = vipllava(*command, '--skip-broken', '--shard', f'{index}/2')
        assert ran.code == 0, ran.err
    assert 'all 2 parts are complete' in ran.err
    assert 'left out' in ran.err
    assert ran.out.splitlines()[1].split()[:2] == ['rows', '19']


def test_an_answer_in_the_file_of_another_part_is_damage(vipllava, command, tmp_path):
    for index in range(2):
        assert vipllava(*command, '--shard', f'{index}/2').code == 0
    other = (tmp_path / 'out.1-of-2.jsonl').read_text().splitlines(keepends=True)[1]
    with (tmp_path / 'out.0-of-2.jsonl').open('a') as file:
        file.write(other)
    ran = vipllava(*command, '--merge', 2)
    assert ran.code == 2
    assert 'out.0-of-2.jsonl is damaged: question' in ran.err
