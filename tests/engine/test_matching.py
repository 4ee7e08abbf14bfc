"""Tokens are checked against grammars, in vocabularies of all kinds."""

import json
import sys
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.engine.formats import CHOICES, REGEX, SCHEMA
from tests.makers import WORDS, tiny_tokenizer
from vipllava_jax.engine import matching
from vipllava_jax.engine.answer_format import AnswerFormat
from vipllava_jax.engine.matching import Vocabulary
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.inputs.token_bytes import token_bytes
from vipllava_jax.inputs.tokenizer import TextStream, Tokenizer

EOS = 2
OBJECT = AnswerFormat('json_object')


def byte_level_tokenizer():
    """A byte-pair tokenizer like GPT-2's, whose first ids are those of Llama's special tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ['<unk>', '<s>', '</s>', '<image>', '<pad>']
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(WORDS, trainer)
    return backend


@pytest.fixture(params=[tiny_tokenizer, byte_level_tokenizer], ids=['byte fallback', 'byte level'])
def tokenizer(request):
    return Tokenizer(request.param(), {})


def vocabulary(tokenizer, size=410):
    """The vocabulary of a model whose logits are wider than the tokenizer."""
    image, pad = (tokenizer.token_to_id(token) for token in ('<image>', '<pad>'))
    cfg = SimpleNamespace(text=SimpleNamespace(vocab=size), image_token=image, pad=pad)
    return Vocabulary(tokenizer, cfg)


def matcher(tokenizer, answer_format, eos=(EOS,)):
    return vocabulary(tokenizer).matchers(answer_format, 1, eos)[0]


def spelled(tokenizer, text):
    """The ids of a text, each the longest token that continues it."""
    special = {*tokenizer.special_ids, tokenizer.token_to_id('<image>'), tokenizer.token_to_id('<pad>')}
    known = [b'' if id in special else data for id, data in enumerate(token_bytes(tokenizer, range(400)))]
    ids, rest = [], text.encode()
    while rest:
        fitting = [id for id, data in enumerate(known) if data and rest.startswith(data)]
        ids.append(max(fitting, key=lambda id: len(known[id])))
        rest = rest[len(known[ids[-1]]) :]
    return ids


def is_answer(tokenizer, answer_format, text):
    """Whether a format allows a text as the whole answer."""
    found = matcher(tokenizer, answer_format)
    return all(map(found.accept, spelled(tokenizer, text))) and found.accept(EOS)


@pytest.mark.parametrize('text', ['{}', '{"a": [1,2.5, null], "ü 日本 😀":{"b":"\\n"}}', ' {"a":true}'])
def test_objects_are_allowed_after_a_space_or_without(tokenizer, text):
    assert is_answer(tokenizer, OBJECT, text)


@pytest.mark.parametrize(
    'text', ['  {}', '\n{}', '{ }', '{"a":  1}', '{\n"a":1}', '{} ', '[1]', '{"a":NaN}', '{"a":1', '{}{}']
)
def test_nothing_else_is_an_object_and_no_answer_runs_on_with_blanks(tokenizer, text):
    assert not is_answer(tokenizer, OBJECT, text)


def test_regular_expressions_and_choices_are_those_of_the_whole_answer(tokenizer):
    regex, choice = AnswerFormat('regex', REGEX), AnswerFormat('choice', CHOICES)
    assert all(is_answer(tokenizer, regex, text) for text in ('red dog', ' the old sofas 17'))
    assert not any(
        is_answer(tokenizer, regex, text) for text in ('red', 'a red dog', 'red dog 1', 'red dog ')
    )
    assert all(is_answer(tokenizer, choice, text) for text in CHOICES)
    assert not any(is_answer(tokenizer, choice, text) for text in ('ye', 'yes.', 'a dog that', ''))


@pytest.mark.parametrize(
    ('regex', 'allowed', 'refused'),
    [
        (r'[/]\/x//', '///x//'[1:], '/x'),
        ('^abc$', 'abc', 'abcd'),
        (r'\s*(foo)?\s*', 'foo', 'foo '),
        ('a*', '', 'b'),
        ('(?s:.)+', 'a\nb', '\x1c'),
        (r'"\d#@<s>%json', '"1#@<s>%json', '<s>'),
    ],
)
def test_regular_expressions_of_all_kinds(tokenizer, regex, allowed, refused):
    assert is_answer(tokenizer, AnswerFormat('regex', regex), allowed)
    assert not is_answer(tokenizer, AnswerFormat('regex', regex), refused)


def test_what_is_accepted_is_what_the_text_of_an_answer_shows(tokenizer):
    for text in (' {"a": "ü 日本 😀"}', '{"":"\\u0000  "}'):
        stream = TextStream(tokenizer)
        assert stream.push(spelled(tokenizer, text)) + stream.end() == text.strip()
        assert json.loads(text)


def test_special_tokens_and_ids_beyond_the_vocabulary_are_never_allowed(tokenizer):
    anything = matcher(tokenizer, AnswerFormat('regex', '(?s:.)*'), eos=())
    none = {*tokenizer.special_ids, tokenizer.token_to_id('<image>'), *range(400, 410)}
    assert not none & ids_of(anything.allowed())
    assert not any(map(anything.accept, none))


def test_the_grammar_decides_where_an_answer_ends(tokenizer):
    word = spelled(tokenizer, 'dog')[0]  # a token of text that ends answers, too
    found = matcher(tokenizer, AnswerFormat('regex', 'a{2,3}'), eos=(EOS, word))
    a = spelled(tokenizer, 'a')[0]
    assert found.accept(a)
    assert not found.accept(EOS)
    assert EOS not in ids_of(found.allowed())
    assert found.accept(a)
    assert {EOS, word} < ids_of(found.allowed())
    assert (found.accept(EOS), found.accept(word), found.is_complete) == (True, True, False)
    assert found.accept(a)
    assert found.is_complete


def test_answers_are_independent(tokenizer):
    first, second = vocabulary(tokenizer).matchers(AnswerFormat('choice', ('ab', 'cd')), 2, (EOS,))
    assert first.accept(spelled(tokenizer, 'a')[0])
    assert not second.accept(spelled(tokenizer, 'b')[0])
    assert second.accept(spelled(tokenizer, 'c')[0])


def test_answers_do_not_use_up_the_states_of_others(tokenizer, monkeypatch):
    """Each number adds states for its remainders; 40 numbers have far more than a lexer may have."""
    monkeypatch.setitem(matching.LIMITS, 'max_lexer_states', 400)
    multiple = AnswerFormat('json_schema', {'type': 'integer', 'multipleOf': 997})
    known = vocabulary(tokenizer)
    for n in range(10):
        for m, answer in enumerate(known.matchers(multiple, 4, (EOS,))):
            for id in spelled(tokenizer, str(10_000 + 2_221 * (4 * n + m))):
                answer.allowed()
                assert answer.accept(id)


def ids_of(sets):
    return {32 * n + bit for n, word in enumerate(sets.tolist()) for bit in range(32) if word >> bit & 1}


@pytest.mark.parametrize(
    ('answer_format', 'message'),
    [
        (AnswerFormat('regex', '(abc'), 'unclosed group$'),
        (AnswerFormat('regex', '(?=a)b'), 'look-around'),
        (AnswerFormat('regex', ' foo'), 'neither begin nor end with white space'),
        (AnswerFormat('regex', '((a{100}){100}){100}'), 'fuel'),
        (AnswerFormat('json_schema', {'uniqueItems': True}), 'uniqueItems'),
        (AnswerFormat('json_schema', {'$ref': 'http://127.0.0.1/a.json'}), 'does not fetch'),
        (AnswerFormat('json_schema', {'$ref': 'file:///etc/passwd'}), 'does not fetch'),
        (AnswerFormat('json_schema', {'type': 'a\x1b[31m\nb'}), r'Invalid type: a\\x1b\[31m b$'),
        (AnswerFormat('json'), 'the kind of an answer format'),
    ],
)
def test_formats_that_cannot_be_used_are_errors_of_the_question(tokenizer, answer_format, message):
    with pytest.raises(QuestionError, match=message) as caught:
        matcher(tokenizer, answer_format)
    assert caught.value.part == 'answer_format'
    assert str(caught.value).isprintable()
    assert 'llguidance' not in str(caught.value)


def test_a_format_that_takes_too_much_work_later_is_an_error_of_the_question(tokenizer):
    found = matcher(tokenizer, AnswerFormat('json_schema', {'properties': {f'p{n}': {} for n in range(600)}}))
    assert not all(map(found.accept, spelled(tokenizer, '{"')))
    with pytest.raises(QuestionError, match='too complex: .*max is 2000'):
        found.allowed()


def test_a_missing_library_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, 'llguidance', None)
    with pytest.raises(QuestionError, match=r"pip install 'vipllava-jax\[serve\]'"):
        matcher(tokenizer, SCHEMA)
    assert vocabulary(tokenizer).matchers(None, 1, (EOS,)) == ()
