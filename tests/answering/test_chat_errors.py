"""A chat refuses invalid arguments, and questions for which there is no room, before anything runs."""

import dataclasses

import pytest
from PIL import Image

import vipllava_jax as vj
from vipllava_jax.answering.chat_replies import ENOUGH, limited
from vipllava_jax.inputs.prompts import Turn

RED = vj.Mark('rectangle', box=(5, 5, 40, 40))


@pytest.fixture
def idle(model):
    """The model without weights: what it refuses is refused before anything runs."""
    return model._replace(params=None)


def test_a_full_context_is_an_error_before_anything_runs(idle):
    chat = vj.Chat(idle)
    left = chat.tokens_left
    hello = len(idle.processor.encode([Turn('user', 'Hello')], 0))
    assert 0 < left < idle.cfg.text.context
    text = dataclasses.replace(idle.cfg.text, context=hello + ENOUGH - 1)
    chat = vj.Chat(idle._replace(cfg=dataclasses.replace(idle.cfg, text=text)))
    with pytest.raises(
        vj.ContextFull, match=rf'has {hello} of {text.context} tokens, .* needs 16: .* undo\(\)'
    ):
        chat.ask('Hello')
    with pytest.raises(ValueError, match='which leaves 0 to the answer'):
        chat.ask('Hello ' * 50)
    assert chat.turns == []
    assert 0 < chat.tokens_left < 30


def test_an_answer_is_shortened_to_what_the_context_leaves():
    for wanted, left, expected in [(None, 1000, 512), (None, 40, 40), (60, 40, 40), (60, 80, 60), (4, 4, 4)]:
        settings = vj.GenerationSettings(max_new_tokens=wanted)
        assert limited(settings, 100, 100 + left).max_new_tokens == expected
    with pytest.raises(vj.ContextFull, match='leaves 3 to the answer, and it needs 4'):
        limited(vj.GenerationSettings(max_new_tokens=4), 97, 100)
    with pytest.raises(vj.ContextFull, match='needs 30'):
        limited(vj.GenerationSettings(min_new_tokens=30), 80, 100)


IMAGE = Image.new('RGB', (60, 50))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'text': ' '}, 'the question is empty: ask something'),
        ({'text': None}, 'the question is None: expected a string'),
        ({'text': '<image> <image>?', 'images': IMAGE}, 'has <image> 2 times for 1 image'),
        ({'images': 'none.jpg'}, "no picture at 'none.jpg'"),
        ({'marks': 'point:9,9'}, 'there is a mark but no image'),
        ({'marks': 3}, 'expected a mark or a list of marks, found 3'),
        ({'marks': [3]}, 'expected a Mark, or a string such as point:40,60:red, found 3'),
        ({'images': IMAGE, 'marks': '2/point:9,9'}, 'is on image 2, but in the chat there is 1 image'),
        ({'images': IMAGE, 'marks': 'point:90,9'}, 'lies outside the picture, which is 60x50 pixels'),
        ({'text': 'What is {mark2}?', 'images': IMAGE, 'marks': RED}, 'says {mark2}, but there is 1 mark'),
        ({'text': '\ud800'}, 'not valid Unicode'),
        ({'settings': {'seed': 1}}, 'must be a GenerationSettings'),
        (
            {'settings': vj.GenerationSettings(num_return_sequences=2, temperature=1.0)},
            'num_return_sequences is 2, but a chat goes on from one answer',
        ),
    ],
)
def test_an_invalid_question_is_an_error_before_anything_runs(idle, arguments, message):
    chat = vj.Chat(idle)
    for method in (chat.ask, chat.stream):
        with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
            method(**{'text': 'What?', **arguments})
        assert message in str(error.value)
        assert '\n' not in str(error.value)
    assert chat.turns == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'template': 'none'}, "unknown template 'none'"),
        ({'template': 'checkpoint'}, 'this checkpoint has no chat template'),
        ({'fit': 'none'}, "unknown fit 'none'"),
        ({'system': '\ud800'}, 'not valid Unicode'),
        ({'system': 3}, 'system is 3: expected a string'),
        ({'system': '<image>'}, 'images belong to questions'),
        ({'model': 'demo'}, "the model is 'demo': expected a Model"),
    ],
)
def test_invalid_arguments_of_a_chat_are_errors(idle, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        vj.Chat(**{'model': idle, **arguments})


def test_a_mark_that_the_crop_cuts_off_is_named_with_the_number_of_its_image(idle):
    wide = Image.new('RGB', (200, 50))
    with pytest.warns(UserWarning, match='cuts off the mark point:2,2:red on image 2: fit='):
        vj.Chat(idle).stream('What?', [IMAGE, wide], '2/point:2,2:red')


def test_there_must_be_a_turn_to_change(idle):
    chat = vj.Chat(idle, system='Be brief.')
    for change in (chat.undo, chat.retry):
        with pytest.raises(ValueError, match='the chat has no question yet'):
            change()
    with pytest.raises(IndexError, match='turn 0 is the system text'):
        chat.edit(0, 'Hello')
    with pytest.raises(IndexError, match='there is no turn 1: the chat has 1'):
        chat.edit(1, 'Hello')
    with pytest.raises(TypeError, match="the turn is 'a': expected an index in turns"):
        chat.edit('a', 'Hello')


def test_the_repr_is_one_line(idle):
    chat = vj.Chat(idle)
    assert repr(chat) == f"Chat(questions=0, images=0, tokens_left={chat.tokens_left}, template='vipllava')"
