"""Messages become turns, with pictures where their parts stand and the phrases of marks in their texts."""

import time

import pytest

from tests.protocol.bodies import HELLO, PNG, POINT, URI, chat, image, text, user
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.protocol.conversation import read_conversation
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.served import Limits

ASSISTANT = {'role': 'assistant', 'content': 'A {mark}.'}


def conversation(*messages, fetched=None):
    return read_conversation(chat(messages=[*messages]).messages, Limits(), fetched or {})


def system(words, role='system'):
    return {'role': role, 'content': words}


@pytest.mark.parametrize(
    ('messages', 'turns'),
    [
        (HELLO, [('user', 'Hello?')]),
        ([user('a', 'b')], [('user', 'a\nb')]),
        ([user(image(), 'What?')], [('user', 'What?')]),  # where the template puts it
        ([user(image(), image(), 'What?')], [('user', 'What?')]),
        ([user('What?', image())], [('user', 'What?\n<image>')]),
        ([user(image(), 'or', image())], [('user', '<image>\nor\n<image>')]),
        (
            [user(image(), 'a'), ASSISTANT, user('b', image())],
            [('user', '<image>\na'), ('assistant', 'A {mark}.'), ('user', 'b\n<image>')],
        ),
        (
            [system('Be'), system('brief.', 'developer'), *HELLO],
            [('system', 'Be\nbrief.'), ('user', 'Hello?')],
        ),
        (
            [{'role': 'assistant', 'content': [text('Hi'), text('!')]}, *HELLO],
            [('assistant', 'Hi\n!'), ('user', 'Hello?')],
        ),
    ],
)
def test_messages_are_turns(messages, turns):
    found = conversation(*messages)
    assert found.turns == [Turn(*turn) for turn in turns]
    parts = [part for message in messages for part in message['content'] if isinstance(part, dict)]
    assert found.images == [PNG for part in parts if part['type'] == 'image_url']


def test_marks_count_across_pictures_and_messages():
    first = image(visual_prompts=['rectangle:1,2,30,40:red', POINT])
    second = image(visual_prompts=[POINT | {'color': 'blue', 'units': 'fractions', 'point': [0.5, 1]}])
    found = conversation(
        system('Say {mark3}.'), user(first, '{mark} or {mark2}?'), ASSISTANT, user('{mark3}?', second)
    )
    assert [turn.text for turn in found.turns] == [
        'Say at the blue point.',
        '<image>\nwithin the red rectangle or at the lime point?',
        'A {mark}.',
        'at the blue point?\n<image>',
    ]
    assert found.marks == [
        Mark('rectangle', box=(1, 2, 30, 40), color='red'),
        Mark('point', point=(3, 4), color='lime'),
        '2/point:0.5,1:blue:units=relative',
    ]


def test_pictures_have_one_fit():
    assert conversation(user(image(), image(fit='pad'))).fit == 'pad'
    assert conversation(user(image())).fit is None


def test_a_long_text_is_read_at_once():
    begin = time.process_time()
    conversation({'role': 'user', 'content': 'word ' * 2_000_000})
    assert time.process_time() - begin < 1


def test_fetched_pictures_are_used():
    url = 'https://a.org/x.png'
    assert conversation(user(image(url), 'What?'), fetched={url: PNG}).images == [PNG]


@pytest.mark.parametrize(
    ('messages', 'param', 'message'),
    [
        ([user('What is <image>?', image())], 'messages[0].content[0].text', 'stands for a picture'),
        ([system('<image>'), *HELLO], 'messages[0].content', 'write it differently'),
        ([*HELLO, {'role': 'assistant', 'content': '<image>'}, *HELLO], 'messages[1].content', '<image>'),
        ([user('{mark}?')], 'messages[0].content[0].text', 'there are 0 marks: add it to the visual_prompts'),
        ([user(image(visual_prompts=[POINT]), '{mark2}?')], 'messages[0].content[1].text', 'there is 1 mark'),
        ([*HELLO, ASSISTANT], 'messages[1].role', 'the last message is one of the user'),
        ([*HELLO, system('x'), *HELLO], 'messages[1]', 'put it before the other messages'),
        (
            [{'role': 'system', 'content': [image()]}, *HELLO],
            'messages[0].content',
            'only messages of the user',
        ),
        ([user(image(), image(), image(), image(), image())], 'messages', '5 pictures, expected at most 4'),
        ([user(image(visual_prompts=[POINT] * 65))], 'messages', '65 marks, expected at most 64'),
        ([user(image(fit='pad'), image(fit='crop'))], 'messages', 'fit is pad, crop: choose one'),
        ([user(image('https://a.org/x.png'))], 'messages[0].content[0].image_url.url', '--allow-image-host'),
        ([user(image('file:///etc/passwd'))], 'messages[0].content[0].image_url.url', 'as a data URI'),
        ([user(image('/etc/passwd'))], 'messages[0].content[0].image_url.url', 'as a data URI'),
        ([user(image(URI + ' '))], 'messages[0].content[0].image_url.url', 'not valid base64'),
        (
            [user(image(visual_prompts=[POINT, {'shape': 'star', 'box': [1, 2, 3, 4]}]))],
            'messages[0].content[0].visual_prompts[1]',
            "unknown shape 'star'",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(messages, param, message):
    with pytest.raises(ApiError) as caught:
        conversation(*messages)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message
