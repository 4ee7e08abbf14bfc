"""Rows are divided by a hash of their ids; indices come from the flag or the scheduler, checked."""

import pytest

from vipllava_jax.row_shards import Shard, check_parts, parse_shard, shards


def test_every_row_is_in_one_part_and_parts_are_of_similar_size():
    ids = [f'row-{n}' for n in range(4000)]
    counts = [sum(shard.holds(id) for id in ids) for shard in shards(8)]
    assert sum(counts) == 4000
    assert all(420 < count < 580 for count in counts)


def test_the_division_is_the_same_in_every_process_and_version():
    assert [n for n in range(20) if Shard(1, 3).holds(f'row-{n}')] == [0, 6, 10, 12, 17, 18]
    assert Shard(0, 2).holds('\ud800') != Shard(1, 2).holds('\ud800')


def test_the_file_of_a_part_lies_next_to_the_whole(tmp_path):
    assert Shard(0, 4).file(tmp_path / 'out.jsonl') == tmp_path / 'out.0-of-4.jsonl'
    assert Shard(11, 12).file(tmp_path / 'a.b.jsonl').name == 'a.b.11-of-12.jsonl'


SKYPILOT = {'SKYPILOT_NODE_RANK': '2', 'SKYPILOT_NUM_NODES': '3'}
ARRAY = {'SLURM_ARRAY_TASK_ID': '1', 'SLURM_ARRAY_TASK_COUNT': '2', 'SLURM_ARRAY_TASK_MIN': '0'}


@pytest.mark.parametrize(
    ('text', 'variables', 'expected'),
    [
        ('0/1', {}, Shard(0, 1)),
        ('3/4', ARRAY, Shard(3, 4)),
        ('auto', SKYPILOT, Shard(2, 3)),
        ('auto/8', SKYPILOT, Shard(2, 8)),
        ('auto', ARRAY, Shard(1, 2)),
        ('auto/4', {'JOB_COMPLETION_INDEX': '3'}, Shard(3, 4)),
        # task 2 of 4 submitted again on its own
        ('auto/4', {**ARRAY, 'SLURM_ARRAY_TASK_ID': '2', 'SLURM_ARRAY_TASK_MIN': '2'}, Shard(2, 4)),
    ],
)
def test_a_part_is_named_by_the_flag_or_found_in_variables(text, variables, expected):
    assert parse_shard(text, variables) == expected


@pytest.mark.parametrize(
    ('text', 'variables', 'message'),
    [
        ('4/4', {}, "--shard: '4', expected a whole number from 0 to 3"),
        ('0/0', {}, "--shard: '0', expected a whole number from 1 to 65536"),
        ('-1/4', {}, "--shard: '-1', expected"),
        ('x/4', {}, "--shard: 'x', expected"),
        ('0/x', {}, "--shard: 'x', expected"),
        ('٣/4', {}, 'expected a whole number'),
        ('0/' + '9' * 5000, {}, 'expected a whole number from 1'),
        ('1/2/3', {}, "'2/3', expected"),
        ('1', {}, "--shard '1': expected I/N, as in 0/4, auto, or auto/N"),
        ('\x1b[2J', {}, 'expected I/N'),
        (
            'auto',
            {},
            'none of JOB_COMPLETION_INDEX, SKYPILOT_NODE_RANK, SLURM_ARRAY_TASK_ID is set: give I/N',
        ),
        ('auto', {**SKYPILOT, **ARRAY}, 'SKYPILOT_NODE_RANK and SLURM_ARRAY_TASK_ID are all set: give I/N'),
        ('auto', {'JOB_COMPLETION_INDEX': '1'}, 'is set, but the number of parts is not: give auto/N'),
        ('auto', {'SKYPILOT_NODE_RANK': '1'}, 'is set, but the number of parts is not: give auto/N'),
        ('auto/0', {'JOB_COMPLETION_INDEX': '0'}, "--shard: '0', expected"),
        ('auto/', {'JOB_COMPLETION_INDEX': '0'}, "--shard: '', expected"),
        ('auto/2', {'JOB_COMPLETION_INDEX': '2'}, "JOB_COMPLETION_INDEX: '2', expected .* from 0 to 1"),
        ('auto', {**SKYPILOT, 'SKYPILOT_NODE_RANK': 'x'}, "SKYPILOT_NODE_RANK: 'x', expected"),
        ('auto', {**SKYPILOT, 'SKYPILOT_NUM_NODES': '-3'}, "SKYPILOT_NUM_NODES: '-3', expected"),
        ('auto', {**SKYPILOT, 'SKYPILOT_NUM_NODES': ''}, "SKYPILOT_NUM_NODES: '', expected"),
        ('auto', {**ARRAY, 'SLURM_ARRAY_TASK_MIN': '1'}, 'begin at 1: submit all with --array=0-1, or some'),
        ('auto', {**ARRAY, 'SLURM_ARRAY_TASK_MIN': 'x'}, "SLURM_ARRAY_TASK_MIN: 'x', expected"),
        ('auto', {**ARRAY, 'SLURM_ARRAY_TASK_ID': '7'}, "SLURM_ARRAY_TASK_ID: '7', expected"),
    ],
)
def test_wrong_values_are_refused_by_name(text, variables, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_shard(text, variables)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_parts_for_another_number_of_processes_are_refused(tmp_path):
    output = tmp_path / 'out.jsonl'
    check_parts(output, 4)
    for name in (
        'out.jsonl',
        'out.0-of-4.jsonl',
        'out.1-of-4.jsonl',
        'other.0-of-8.jsonl',
        'out.0-of-8.json',
    ):
        (tmp_path / name).touch()
    check_parts(output, 4)
    check_parts(tmp_path / 'missing' / 'out.jsonl', 4)
    with pytest.raises(ValueError, match=r'out.0-of-4.jsonl holds one of 4 parts, .* are 2, .*--merge 4'):
        check_parts(output, 2)
