"""Rows that max_length cuts are counted before a run; only rows that may be too long are tokenized."""

import pytest

from tests.data.samples import region_row, write_lines
from vipllava_jax.data.batches import Batches, BatchSettings
from vipllava_jax.data.conversations import ANSWER_ENDINGS, IGNORE, LengthLimit, encode_conversation
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.inputs.prompts import TEMPLATES, Turn


def talk(question, answer):
    return [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]


def rows(count):
    """Rows of many lengths, some with a question that is already too long."""
    made = []
    for n in range(count):
        said = talk('Hello ' * (n % 7 * 40), 'A dog ' * (n % 5 * 30 + 1))
        made.append(
            region_row(id=f'x-{n}', bboxes=None, conversations=said, **({'image': None} if n % 2 else {}))
        )
    return made


@pytest.mark.parametrize('template', ANSWER_ENDINGS)
@pytest.mark.parametrize('max_length', [260, 300, 400, 700, 5000])
def test_counts_are_those_of_what_is_encoded(pictures, processor, template, max_length):
    path = write_lines(pictures / 'rows.jsonl', rows(35))
    found = read_rows([path], limit=LengthLimit(processor, template, max_length))
    truncated = without_answer = 0
    for i in range(len(found)):
        said = [
            Turn('user' if t['from'] == 'human' else 'assistant', t['value'])
            for t in found[i].fields['conversations']
        ]
        whole = encode_conversation(said, len(found[i].images), processor, template, 10**6)
        left = encode_conversation(said, len(found[i].images), processor, template, max_length)
        truncated += len(whole.tokens) > max_length
        without_answer += (left.targets == IGNORE).all()
    assert (found.truncated, found.without_answer) == (truncated, without_answer)
    assert read_rows([path]).truncated == 0


@pytest.mark.parametrize('template', ANSWER_ENDINGS)
@pytest.mark.parametrize(
    'text', ['Hello', 'a b c', '   ', '\n\n', 'ÄÖ', '\U0001f600', '', '<s></s>', '日本' * 20]
)
def test_the_bound_is_no_smaller_than_the_tokens(processor, template, text):
    for turns in (
        [Turn('user', text), Turn('assistant', text)],
        [Turn('system', text)] + [Turn('user', text), Turn('assistant', text)] * 3,
    ):
        for images in (0, 1, 3):
            whole = encode_conversation(turns, images, processor, template, 10**6)
            assert LengthLimit(processor, template, 1)._max_tokens(turns, images) >= len(whole.tokens)


def test_short_rows_are_not_tokenized(pictures, processor, monkeypatch):
    monkeypatch.setattr('vipllava_jax.inputs.tokenizer.Tokenizer.encode_with_spans', None)
    assert set(ANSWER_ENDINGS) <= set(TEMPLATES)
    path = write_lines(pictures / 'rows.jsonl', [region_row()] * 3)
    assert read_rows([path], limit=LengthLimit(processor, 'vipllava', 2048)).truncated == 0


def test_pictures_that_do_not_fit_make_a_broken_row(pictures, processor):
    many = region_row(image=['a.png'] * 20, bboxes=None, conversations=talk('What?', 'A dog'))
    path = write_lines(pictures / 'rows.jsonl', [region_row(), many])
    limit = LengthLimit(processor, 'vipllava', 150)
    with pytest.raises(
        ValueError, match=r'1 of 2 rows are broken:\n.*line 2: its 20 image.* max_length 150 is too'
    ):
        read_rows([path], limit=limit)
    found = read_rows([path], limit=limit, skip_broken=True)
    assert len(found) == 1
    Batches(found, processor, BatchSettings(batch_size=1, max_length=150))
