"""Rows that max_length cuts are counted before a run; only rows that may be too long are tokenized."""

import pytest

from tests.data.samples import region_row, write_lines
from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.conversations import ANSWER_ENDINGS, IGNORE, LengthLimit, encode_conversation
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.inputs.prompts import TEMPLATES, Turn


def talk(question, answer):
    return [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]


def rows(count):
    """Rows of many lengths, some with a question that is already too long."""
    result = []
    for n in range(count):
        conversation = talk('Hello ' * (n % 7 * 40), 'A dog ' * (n % 5 * 30 + 1))
        result.append(
            region_row(
                id=f'x-{n}', bboxes=None, conversations=conversation, **({'image': None} if n % 2 else {})
            )
        )
    return result


@pytest.mark.parametrize('template', ANSWER_ENDINGS)
@pytest.mark.parametrize('max_length', [260, 300, 400, 700, 5000])
def test_counts_equal_those_of_encoded_rows(pictures, processor, template, max_length):
    path = write_lines(pictures / 'rows.jsonl', rows(35))
    checked = read_rows([path], limit=LengthLimit(processor, template, max_length))
    truncated = without_answer = 0
    for i in range(len(checked)):
        conversation = [
            Turn('user' if t['from'] == 'human' else 'assistant', t['value'])
            for t in checked[i].fields['conversations']
        ]
        complete = encode_conversation(conversation, len(checked[i].images), processor, template, 10**6)
        cut_off = encode_conversation(conversation, len(checked[i].images), processor, template, max_length)
        truncated += len(complete.tokens) > max_length
        without_answer += (cut_off.targets == IGNORE).all()
    assert (checked.truncated, checked.without_answer) == (truncated, without_answer)
    assert read_rows([path]).truncated == 0


@pytest.mark.parametrize('template', ANSWER_ENDINGS)
@pytest.mark.parametrize(
    'text', ['Hello', 'a b c', '   ', '\n\n', 'ÄÖ', '\U0001f600', '', '<s></s>', '日本' * 20]
)
def test_the_bound_is_at_least_the_number_of_tokens(processor, template, text):
    for turns in (
        [Turn('user', text), Turn('assistant', text)],
        [Turn('system', text)] + [Turn('user', text), Turn('assistant', text)] * 3,
    ):
        for images in (0, 1, 3):
            complete = encode_conversation(turns, images, processor, template, 10**6)
            assert LengthLimit(processor, template, 1)._max_tokens(turns, images) >= len(complete.tokens)


def test_short_rows_are_not_tokenized(pictures, processor, monkeypatch):
    monkeypatch.setattr('vipllava_jax.inputs.tokenizer.Tokenizer.encode_with_spans', None)
    assert set(ANSWER_ENDINGS) <= set(TEMPLATES)
    path = write_lines(pictures / 'rows.jsonl', [region_row()] * 3)
    assert read_rows([path], limit=LengthLimit(processor, 'vipllava', 2048)).truncated == 0


def test_a_row_whose_pictures_exceed_max_length_is_broken(pictures, processor):
    many = region_row(image=['a.png'] * 20, bboxes=None, conversations=talk('What?', 'A dog'))
    path = write_lines(pictures / 'rows.jsonl', [region_row(), many])
    limit = LengthLimit(processor, 'vipllava', 150)
    with pytest.raises(
        ValueError, match=r'1 of 2 rows are broken:\n.*line 2: its 20 image.* max_length 150 is too'
    ):
        read_rows([path], limit=limit)
    checked = read_rows([path], limit=limit, skip_broken=True)
    assert len(checked) == 1
    Batches(checked, processor, BatchSettings(batch_size=1, max_length=150))
