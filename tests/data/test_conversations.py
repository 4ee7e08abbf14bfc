"""Ids are those of the processor, and the targets are exactly the answers and the text that ends them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as BytePairs

from tests.makers import WORDS, noise, tiny_tokenizer
from vipllava_jax.data.conversations import ANSWER_ENDINGS, IGNORE, encode_conversation, parse_conversation
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.inputs.tokenizer import Tokenizer

TINY = Processor('', Tokenizer(tiny_tokenizer(), {'add_bos_token': True}), ImageSettings(28, 28), 398)
words = st.lists(st.sampled_from([*WORDS, 'é', '😀', '\n', '  ', ' the', 'A dog']), max_size=5).map(''.join)
free = st.text(st.characters(exclude_characters='<▁', codec='utf-8'), max_size=9)
talks = st.lists(st.tuples(words | free, words | free), min_size=1, max_size=4)


def turns(pairs):
    return [Turn(*turn) for question, answer in pairs for turn in (('user', question), ('assistant', answer))]


def targets_of(example):
    return [id for id in example.targets.tolist() if id != IGNORE]


@given(talks, st.integers(0, 3), st.sampled_from(['vipllava', 'llama3', 'phi3']))
def test_ids_equal_those_of_the_processor(pairs, images, template):
    batch = TINY(turns(pairs), [noise(28, 28)] * images, template=template)
    example = encode_conversation(turns(pairs), images, TINY, template, max_length=100_000)
    assert example.tokens.tolist() == batch.tokens[0, : batch.lengths[0]].tolist()


@given(talks, st.integers(0, 2))
def test_targets_are_the_answers_and_their_endings(pairs, images):
    example = encode_conversation(turns(pairs), images, TINY, max_length=100_000)
    answers, answer = [], []
    for id in targets_of(example):
        answer.append(id)
        if id == TINY.tokenizer.eos:
            answers.append(TINY.tokenizer.decode_untrimmed(answer))
            answer = []
    assert not answer
    assert answers == [f' {answer}'.removeprefix(' ') for _, answer in pairs]
    following = example.targets[:-1] != IGNORE
    assert (example.targets[:-1] == example.tokens[1:])[following].all()
    assert example.targets[-1] == IGNORE
    assert TINY.image_id not in targets_of(example)


def test_targets_have_the_ids_of_llama_2():
    """The ids of two answers, by a tokenizer whose pieces have the same ids as in Llama 2."""
    form = json.loads(tiny_tokenizer().to_str())
    vocab, merges = form['model']['vocab'], form['model']['merges']
    pieces = {'▁A': 319, '▁dog': 11203, '.': 29889, '▁Brown': 9817}
    for piece in pieces:
        for n in range(2, len(piece) + 1):
            vocab.setdefault(piece[:n], 1000 + len(vocab))
            merges.insert(0, [piece[: n - 1], piece[n - 1]])
    merges.sort(key=lambda pair: len(pair[0] + pair[1]))  # no piece before its parts
    taken = {id: piece for piece, id in vocab.items()}
    for piece, id in pieces.items():
        if id in taken:
            vocab[taken[id]] = vocab[piece]
        vocab[piece] = id
    llama = Tokenizer(BytePairs.from_str(json.dumps(form)), {'add_bos_token': True})
    talk = turns([('<image>\nWhat is it?', 'A dog.'), ('What color?', 'Brown.')])
    example = encode_conversation(talk, 1, Processor('', llama, ImageSettings(28, 28), 398), max_length=1000)
    assert targets_of(example) == [319, 11203, 29889, 2, 9817, 29889, 2]


@given(talks)
def test_tokens_before_an_answer_equal_the_prompt_of_inference(pairs):
    example = encode_conversation(turns(pairs), 1, TINY, max_length=100_000)
    first = (example.targets != IGNORE).argmax()
    prompt = TINY(turns(pairs)[:1], noise(28, 28))
    assert example.tokens[: first + 1].tolist() == prompt.tokens[0, : prompt.lengths[0]].tolist()


def test_each_template_has_its_ending():
    conversation = turns([('What?', 'dog')])
    ids = TINY.tokenizer.encode
    assert targets_of(encode_conversation(conversation, 0, TINY)) == [*ids('dog')[1:], 2]
    assert targets_of(encode_conversation(conversation, 0, TINY, 'phi3')) == [*ids('\ndog<|end|>')[3:]]
    assert targets_of(encode_conversation(conversation, 0, TINY, 'llama3')) == [*ids('\n\ndog<|eot_id|>')[4:]]
    assert [*ANSWER_ENDINGS] == ['vipllava', 'plain', 'llama3', 'phi3']
    with pytest.raises(
        ValueError, match="template 'hub' cannot be used for training: choose one of vipllava, plain"
    ):
        encode_conversation(conversation, 0, TINY, 'hub')


def test_a_plain_caption_follows_its_picture():
    example = encode_conversation(turns([('Describe the picture.', 'A dog')]), 1, TINY, 'plain')
    caption = TINY.tokenizer.encode('A dog\n')[1:]
    assert example.tokens.tolist() == [1, *[398] * 4, *caption]
    assert example.targets.tolist() == [*[IGNORE] * 4, *caption, IGNORE]


@given(talks, st.integers(0, 3), st.integers(1, 400))
def test_truncation_never_splits_a_picture(pairs, images, max_length):
    complete = encode_conversation(turns(pairs), images, TINY, max_length=100_000)
    if (complete.tokens[max_length:] == TINY.image_id).any():
        with pytest.raises(ValueError, match=rf'end at token \d+: max_length {max_length} is too short'):
            encode_conversation(turns(pairs), images, TINY, max_length=max_length)
    else:
        truncated = encode_conversation(turns(pairs), images, TINY, max_length=max_length)
        assert truncated.tokens.tolist() == complete.tokens[:max_length].tolist()
        assert truncated.targets.tolist() == complete.targets[:max_length].tolist()


def test_a_token_that_spans_question_and_answer_is_an_error():
    core = tiny_tokenizer()
    core.add_tokens([AddedToken(': A', normalized=False)])
    with pytest.raises(ValueError, match="token ': A' holds the end of a question and the start"):
        encode_conversation(
            turns([('What?', 'A dog')]), 0, Processor('', Tokenizer(core, {}), ImageSettings(28, 28), 398)
        )


def test_pictures_come_first():
    talk = [
        {'from': 'human', 'value': 'What is it?\n<image>'},
        {'from': 'gpt', 'value': 'A dog. '},
        {'from': 'human', 'value': ' And <image>?'},
        {'from': 'gpt', 'value': 'A cat.'},
    ]
    assert [turn.text for turn in parse_conversation(talk, 2)] == [
        'What is it?',
        'A dog. ',
        'And ?',
        'A cat.',
    ]
    text = TINY.tokenizer.backend.decode(
        encode_conversation(parse_conversation(talk, 2), 2, TINY).tokens.tolist(), skip_special_tokens=False
    )
    assert 'USER: ' + '<image>' * 4 in text.replace('<image> ', '<image>')


def test_a_system_turn_replaces_the_preamble():
    talk = [{'from': 'system', 'value': 'Be brief.'}, *({'from': r, 'value': r} for r in ('human', 'gpt'))]
    assert (
        TINY.tokenizer.decode(encode_conversation(parse_conversation(talk, 0), 0, TINY).tokens)
        == 'Be brief. USER: human ASSISTANT: gpt'
    )


human, gpt = ({'from': role, 'value': 'x'} for role in ('human', 'gpt'))


@pytest.mark.parametrize(
    ('talk', 'message'),
    [
        (None, 'it has no conversation'),
        ([], 'it has no conversation'),
        ('x', 'it has no conversation'),
        ([human], 'must take turns, from human to gpt; found human'),
        ([gpt, human], 'found gpt, human'),
        ([human, gpt, gpt], 'found human, gpt, gpt'),
        ([human, {'from': 'dog', 'value': 'x'}], r"turn 1 is .*'dog'"),
        ([human, {'from': 'gpt'}], 'turn 1 is'),
        ([human, {'from': 'gpt', 'value': None}], 'turn 1 is'),
        ([human, 'x'], "turn 1 is 'x'"),
        ([human, {'from': 'gpt', 'value': '<image>'}], 'turn 1 says <image>, but only the human may'),
    ],
)
def test_an_invalid_conversation_is_an_error(talk, message):
    with pytest.raises(ValueError, match=message):
        parse_conversation(talk, 1)


def test_an_image_placeholder_without_a_picture_is_an_error():
    with pytest.raises(ValueError, match='turn 0 says <image>, but the row has no image'):
        parse_conversation([{'from': 'human', 'value': '<image>\nx'}, gpt], 0)
