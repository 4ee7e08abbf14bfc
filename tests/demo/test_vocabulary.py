"""The demo tokenizer: one token per word of the world, any text, the same ids as in transformers."""

import json

import pytest

from vipllava_jax.demo import vocabulary
from vipllava_jax.demo.examples import example
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import Turn, render


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    vocabulary.write_processor(folder, 168, 14)
    return folder


@pytest.fixture(scope='module')
def processor(files):
    return Processor.load(files)


@pytest.mark.parametrize('text', ['a star', 'Ünïcode 日本 😀\n new "line"', 'It is pink.', '', '\x00'])
def test_any_text_is_decoded_unchanged(processor, text):
    assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == text.strip()


def test_the_words_of_the_world_are_tokens(processor):
    pieces = words = 0
    for number in range(200):
        for turn in example(number, 'held out').turns:
            pieces += len(processor.tokenizer.encode(turn.text)) - 1
            words += sum(1 + (word[-1:] in '?.,') for word in turn.text.split())
    assert pieces < 1.05 * words


def test_a_prompt_begins_with_few_tokens(processor):
    ids = processor.tokenizer.encode(render('vipllava', [Turn('user', 'What is it?')], 1))
    assert ids.index(processor.image_id) == 5
    assert ids[0] == processor.tokenizer.bos
    assert len(ids) == 13


def test_the_vocabulary_has_its_size(files):
    ids = json.loads((files / 'tokenizer.json').read_text())['model']['vocab'].values()
    assert sorted(ids) == list(range(len(ids)))
    assert max(ids) < vocabulary.SIZE


def test_the_chat_template_writes_the_default_prompt(processor):
    turns = [Turn('user', 'What?'), Turn('assistant', 'a star'), Turn('user', 'Which colour?')]
    assert render('checkpoint', turns, 1, processor.chat_template) == render('vipllava', turns, 1)
    turns = [Turn('system', 'Be brief.'), *turns]
    assert render('checkpoint', turns, 0, processor.chat_template) == render('vipllava', turns, 0)


@pytest.mark.slow
def test_training_the_tokenizer_is_deterministic(files):
    assert vocabulary.make_tokenizer().to_str(pretty=True) == (files / 'tokenizer.json').read_text()


@pytest.mark.parity
def test_transformers_encodes_to_the_same_ids(files, processor):
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(files)
    for number in range(20):
        sample = example(number)
        text = render('vipllava', [*sample.turns, Turn('user', 'Ünïcode?')], int(sample.scene is not None))
        ids = processor.tokenizer.encode(text)
        assert peer(text)['input_ids'] == ids
        assert peer.decode(ids[-12:], skip_special_tokens=True).strip() == processor.tokenizer.decode(
            ids[-12:]
        )
