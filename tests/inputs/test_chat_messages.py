import base64
import io

import numpy as np
import pytest

from tests.makers import noise
from vipllava_jax.inputs.chat_messages import read_messages
from vipllava_jax.inputs.prompts import TEMPLATES, Turn

PICTURE = noise(40, 31)
TEXT = {'type': 'text', 'text': 'What is this?'}
IMAGE = {'type': 'image'}


def data_uri(picture) -> str:
    file = io.BytesIO()
    picture.save(file, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def url(text: str, **fields) -> dict:
    return {'type': 'image_url', 'image_url': {'url': text, **fields}}


def user(*content) -> dict:
    return {'role': 'user', 'content': content[0] if isinstance(content[0], str) else list(content)}


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('template', TEMPLATES)
def test_messages_equal_the_corresponding_prompts(processor, template):
    expected = processor('What is this?', PICTURE, template=template)
    for messages, images in [
        ([user('What is this?')], PICTURE),
        ([user(TEXT)], [PICTURE]),
        ([user(IMAGE, TEXT)], PICTURE),
        ([user(url(data_uri(PICTURE)), TEXT)], None),
        ([user(url(data_uri(PICTURE), detail='auto'), TEXT)], None),
        ([{**user(IMAGE, TEXT), 'refusal': None}], PICTURE),
    ]:
        assert_same(processor(messages, images, template=template), expected)


def test_a_conversation_keeps_its_roles(processor):
    messages = [
        {'role': 'system', 'content': 'Be brief.'},
        user('Hi'),
        {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Hello.'}]},
        user('What?'),
    ]
    turns = [
        Turn('system', 'Be brief.'),
        Turn('user', 'Hi'),
        Turn('assistant', 'Hello.'),
        Turn('user', 'What?'),
    ]
    assert read_messages(messages, []) == (turns, [])
    assert_same(processor(messages), processor(turns))


def test_images_are_placed_where_their_parts_are(processor):
    other = noise(20, 50, 1)
    messages = [user(TEXT, IMAGE, {'type': 'text', 'text': 'And'}, url(data_uri(other)), IMAGE), user(IMAGE)]
    turns, sources = read_messages(messages, [PICTURE, 'b.png', 'c.png'])
    assert turns == [
        Turn('user', 'What is this?\n<image>\nAnd\n<image>\n<image>'),
        Turn('user', '<image>'),
    ]
    assert [type(source) for source in sources[:2]] == [type(PICTURE), bytes]
    assert (sources[0], *sources[2:]) == (PICTURE, 'b.png', 'c.png')
    batch = processor([user(IMAGE, url(data_uri(other)), TEXT)], PICTURE)
    assert_same(batch, processor('What is this?', [PICTURE, other]))


def test_a_placeholder_in_a_text_places_an_image(processor):
    assert_same(
        processor([user('This: <image>\nWhat?')], PICTURE), processor('This: <image>\nWhat?', PICTURE)
    )


def test_a_list_of_prompts_may_have_messages(processor):
    batch = processor([[user(IMAGE, TEXT)], 'Hi', [Turn('user', 'Who?')]], [PICTURE, None, None])
    assert_same(batch, processor(['What is this?', 'Hi', 'Who?'], [PICTURE, None, None]))


@pytest.mark.parametrize(
    'path', ['https://example.org/a.png', 'file:///etc/passwd', '/etc/passwd', 'a.png', '', 'data:', '//x/y']
)
def test_a_message_opens_no_file_and_no_url(processor, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PICTURE.save(tmp_path / 'a.png')
    for messages in ([user(TEXT, url(path))], [[user(url(path))]]):
        with pytest.raises(ValueError, match=r'url: expected a data URI, found .*pass it in images'):
            processor(messages)


@pytest.mark.parametrize(
    ('message', 'images', 'error'),
    [
        (
            {'role': 'tool', 'content': 'x'},
            [],
            r"role: expected system, user, assistant, found 'tool'",
        ),
        ({'content': 'x'}, [], r'messages\[0\].role: .* found None'),
        ({'role': 'user'}, [], r'messages\[0\].content: expected a string or a list of parts, found None'),
        (
            user('x') | {'tool_calls': [1]},
            [],
            r"messages\[0\]: 'tool_calls' is not supported, only role",
        ),
        (user({'type': 'input_audio'}), [], r"content\[0\]: expected a part of type .*, found 'input_audio'"),
        (user(TEXT, 'x', 7), [], r"content\[1\]: expected a part of type text, image, image_url, found 'x'"),
        ({'role': 'user', 'content': []}, [], 'expected a string or a list of parts, found '),
        ({'role': 'user', 'content': {'a': 1}}, [], 'expected a string or a list of parts, found '),
        (user({'type': 'text'}), [], r'content\[0\].text: expected a string, found None'),
        (
            user({**TEXT, 'annotations': [1]}),
            [],
            r"content\[0\]: 'annotations' is not supported, only type",
        ),
        (user({**IMAGE, 'path': 'a.png'}), ['b.png'], r"content\[0\]: 'path' is not supported, only type"),
        (user({**IMAGE, 'image': 'a.png'}), ['b.png'], r"content\[0\]: 'image' is not supported, only type"),
        (user({'type': 'image_url', 'image_url': 'data:,x'}), [], r'image_url: expected \{"url": "data:'),
        (
            user(url('data:image/png,abc')),
            [],
            r"url: expected a data URI in base64, .* 'data:image/png'",
        ),
        (user(url('data:image/png;base64,!')), [], 'url: the data is not valid base64'),
        (user(url('data:image/png;base64,é')), [], 'url: the data is not valid base64'),
        (
            user(url('data:x;base64,AA==', size=1)),
            [],
            r"image_url: 'size' is not supported, only url",
        ),
        (user(IMAGE), [], r'1 \{"type": "image"\} parts for 0 image.s.: give one part for each image'),
        (user(url('data:x;base64,AA==')), ['a.png'], r'0 \{"type": "image"\} parts for 1 image.s.'),
        (
            user(IMAGE, {'type': 'text', 'text': '<image>'}),
            ['a', 'b'],
            'image parts and <image> in a text',
        ),
    ],
)
def test_unsupported_fields_are_named(message, images, error):
    with pytest.raises(ValueError, match=error):
        read_messages([message], images)


def test_an_error_names_the_row_of_an_invalid_message(processor):
    with pytest.raises(ValueError, match=r'^row 1: messages\[0\].content: expected a string'):
        processor(['a', [{'role': 'user', 'content': 7}]])
    with pytest.raises(ValueError, match='^image 0 of row 0 is not a picture in a known format'):
        processor([user(url('data:image/png;base64,AAAA'))])
    with pytest.raises(ValueError, match='row 0: expected a turn of the user'):
        processor([{'role': 'assistant', 'content': 'x'}])
