"""The offsets of rows agree with a JSON parser, for windows of any size."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.data import row_offsets

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def texts(path):
    data = path.read_bytes()
    return [json.loads(data[start : start + size]) for start, size, _ in row_offsets.locate_rows(path)]


@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=1, max_size=9),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from(['', '\ufeff', '\n ']),
    st.sampled_from([8, 64, 1 << 20]),
)
def test_lists_and_lines_have_the_same_rows(tmp_path_factory, rows, indent, ascii, before, window):
    folder = tmp_path_factory.mktemp('files')
    (folder / 'l.json').write_text(before + json.dumps(rows, indent=indent, ensure_ascii=ascii), 'utf-8')
    lines = '\n\n'.join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    (folder / 'l.jsonl').write_text(before + lines, 'utf-8')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_offsets, 'WINDOW_BYTES', window)
        assert texts(folder / 'l.json') == texts(folder / 'l.jsonl') == rows
    assert [line for *_, line in row_offsets.locate_rows(folder / 'l.jsonl')] == [
        2 * n + 1 + before.count('\n') for n in range(len(rows))
    ]


@pytest.mark.parametrize('unit', ['x', '\\"', '\\u00e9'])
def test_a_row_that_is_too_large_is_skipped_with_little_memory(tmp_path, monkeypatch, unit):
    monkeypatch.setattr(row_offsets, 'MAX_ROW_BYTES', 1 << 16)
    monkeypatch.setattr(row_offsets, 'WINDOW_BYTES', 1 << 12)
    path, large = tmp_path / 'rows.json', '{"a": "' + unit * (1 << 21) + '"}'
    path.write_text(f'[{{"b": 1}}, {large}, {{"c": 2}}]')
    tracemalloc.start()
    try:
        sizes = [size for _, size, _ in row_offsets.locate_rows(path)]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert sizes == [8, len(large), 8]
