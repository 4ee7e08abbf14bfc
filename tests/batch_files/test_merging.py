"""Part files are put together only if all are complete, in the order of the parts or of the rows."""

import json

import pytest

from vipllava_jax.batch_files.merging import merge
from vipllava_jax.batch_files.output import open_output
from vipllava_jax.batch_files.run_file import read_run, run_path
from vipllava_jax.batch_files.sources import FileRows
from vipllava_jax.row_shards import shards

COUNT = 4


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / 'rows.jsonl'
    texts = [json.dumps({'id': f'r{n}', 'prompt': 'x'} if n % 9 else {'prompt': 'x'}) for n in range(50)]
    path.write_text('\n'.join([*texts, 'broken']) + '\n')
    return path


@pytest.fixture
def output(tmp_path, rows):
    """Four complete parts, whose lines have another order than the rows."""
    output = tmp_path / 'out.jsonl'
    for shard in shards(COUNT):
        write_part(output, shard, rows)
    return output


def write_part(output, shard, rows, complete=True, **changes):
    ids = [f'r{n}' if n % 9 else f'line {n + 1}' for n in range(50)] + ['line 51']
    settings = {'data': FileRows(rows).fingerprint(), 'weights': 'w', 'drawn_seed': shard.index, **changes}
    with open_output(shard.file(output), {**settings, 'shard': str(shard)}) as part:
        mine = [id for id in ids if shard.holds(id)]
        part.write([{'id': id, 'error' if id == 'line 51' else 'answer': id} for id in mine[::-1]])
        if complete:
            part.complete()
    return ids


def test_parts_are_put_together(output):
    run = merge(output)
    assert run.complete == {'answers': 50, 'errors': 1, 'bytes': output.stat().st_size}
    assert run == read_run(output)
    assert lines(output) == [line for shard in shards(COUNT) for line in lines(shard.file(output))]
    first = output.read_bytes()
    merge(output)
    assert output.read_bytes() == first


def test_the_lines_can_have_the_order_of_the_rows(output, rows, tmp_path):
    merge(output, FileRows(rows))
    assert [line['id'] for line in lines(output)] == [
        f'r{n}' if n % 9 else f'line {n + 1}' for n in range(50)
    ] + ['line 51']
    others = tmp_path / 'others.jsonl'
    others.write_text(rows.read_text()[:-1])
    with pytest.raises(ValueError, match='the rows that give the order are not those'):
        merge(output, FileRows(others))


def test_a_merged_output_is_that_of_the_batch(output, rows):
    merge(output)
    settings = {'data': FileRows(rows).fingerprint(), 'weights': 'w', 'drawn_seed': 9}
    with open_output(output, settings, retry_errors=True) as continued:
        assert (continued.answers, 'line 51' in continued.ids) == (50, False)


def test_missing_and_incomplete_parts_are_named(output, rows, tmp_path):
    first, second, third, last = (shard.file(output) for shard in shards(COUNT))
    with open_output(second, read_run(second).settings):
        pass  # which was started again
    third.unlink()
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r'3 of 4 parts .*: run part 1, 2, 3, as --shard 1/4'):
        merge(output)
    assert not output.exists()
    with pytest.raises(ValueError, match='has no parts: expected the files none.0-of-N.jsonl'):
        merge(tmp_path / 'none.jsonl')
    first.rename(tmp_path / 'out.0-of-2.jsonl')
    with pytest.raises(ValueError, match='has parts of 2, 4 in all'):
        merge(output)


def test_parts_of_other_batches_are_refused(output, rows):
    shard = shards(COUNT)[2]
    shard.file(output).unlink()
    write_part(output, shard, rows, weights='x')
    with pytest.raises(ValueError, match='other weights in the model'):
        merge(output)


def test_parts_with_the_same_id_are_refused(output):
    first, second = (shard.file(output) for shard in shards(COUNT)[:2])
    for path in (second,):
        with open_output(path, read_run(path).settings) as part:
            part.write(lines(first)[:1])
            part.complete()
    with pytest.raises(ValueError, match='has an id that another part has'):
        merge(output)
    assert not output.exists()


def test_a_part_that_is_being_written_is_refused(output):
    path = shards(COUNT)[1].file(output)
    with open_output(path, read_run(path).settings) as part:
        part.complete()
        with pytest.raises(ValueError, match='another process'):
            merge(output)


@pytest.mark.parametrize('known', [False, True])
def test_an_output_that_was_not_made_from_parts_is_kept(output, known):
    output.write_text('{"id": "mine", "answer": "x"}\n')
    if known:
        output.unlink()
        with open_output(output, {'weights': 'w'}) as other:
            other.write([{'id': 'mine', 'answer': 'x'}])
    before = output.read_bytes()
    with pytest.raises(ValueError, match='was not made from parts'):
        merge(output)
    assert output.read_bytes() == before
    assert run_path(output).exists() == known
