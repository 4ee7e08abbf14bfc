"""A chat that is loaded is the one that was saved; files that hold something else are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import vipllava_jax as vj
from tests.makers import noise
from vipllava_jax.answering import chat_files
from vipllava_jax.answering.chat_files import SavedChat, read_chat, write_chat
from vipllava_jax.answering.chat_turns import Exchange, Question

EXCHANGES = (
    Exchange(
        Question('What is {mark}?', (noise(9, 7),), ('1/rectangle:1,1,6,6:red:alpha=90',)), 'Ä "cat".', 'stop'
    ),
    Exchange(
        Question('Why, {mark2}?', (noise(8, 8, 1),), ('1/point:2,3:#010203', '2/arrow:0.5,0.5:blue')),
        '',
        '',
        2,
    ),
    Exchange(Question('Sure?'), 'Yes\n🐈', 'length'),
)
CHAT = SavedChat('Be brief.', 'hub', 'pad', EXCHANGES)


@pytest.fixture
def fields(tmp_path):
    """The content of the file of a chat."""
    write_chat(tmp_path / 'chat.json', CHAT, tmp_path / 'model')
    return json.loads((tmp_path / 'chat.json').read_text())


def test_saving_and_loading_is_the_identity(tmp_path):
    path = tmp_path / 'chat.json'
    write_chat(path, CHAT, tmp_path / 'model')
    found = read_chat(path)
    for exchange, other in zip(found.exchanges, EXCHANGES, strict=True):
        for image, saved in zip(exchange.question.images, other.question.images, strict=True):
            np.testing.assert_array_equal(image, saved)
    for part in (found, CHAT):
        texts = [e._replace(question=e.question._replace(images=())) for e in part.exchanges]
        assert (*part[:3], texts) == (
            *CHAT[:3],
            [e._replace(question=e.question._replace(images=())) for e in EXCHANGES],
        )
    content = path.read_bytes()
    write_chat(path, found, tmp_path / 'model')  # over a saved chat
    assert path.read_bytes() == content
    assert [*tmp_path.iterdir()] == [path]


def test_a_loaded_chat_goes_on_like_the_saved_one(model, tmp_path):
    chat = vj.Chat(model, system='Be brief.', fit='squash')
    chat.ask('What is {mark}?', noise(60, 50), vj.Mark('point', point=(9, 9)))
    chat.save(tmp_path / 'chat.json')
    loaded = vj.Chat.load(str(tmp_path / 'chat.json'), model)
    assert loaded.turns == chat.turns
    assert repr(loaded) == repr(chat)
    assert loaded.finish_reason == 'length'
    np.testing.assert_array_equal(loaded.images[0], chat.images[0])
    assert loaded.ask('Why?', (), '1/point:20,20') == chat.ask('Why?', (), '1/point:20,20')
    assert loaded.turns == chat.turns


def test_only_a_saved_chat_is_replaced(folder, tmp_path):
    chat = vj.Chat(vj.load(folder)._replace(params=None))
    for content in ('{"format": 3}', 'notes'):
        (tmp_path / 'notes.json').write_text(content)
        with pytest.raises(ValueError, match=r'notes\.json: exists and is not a saved chat'):
            chat.save(tmp_path / 'notes.json')
        assert (tmp_path / 'notes.json').read_text() == content
    with pytest.raises(ValueError, match=r'config\.json: is also read'):
        chat.save(folder / 'config.json')
    with pytest.raises(OSError, match='there is no folder'):
        chat.save(tmp_path / 'none' / 'chat.json')
    (tmp_path / 'empty.json').touch()
    chat.save(tmp_path / 'empty.json')
    assert vj.Chat.load(tmp_path / 'empty.json', chat.model).turns == []


CHANGES = {
    'format is None, expected': lambda c: c.pop('format'),
    'version is 2, and this release reads 1: update': lambda c: c.update(version=2),
    'settings: unknown, expected format, version, system': lambda c: c.update(settings={}),
    "template: expected 'vipllava' or 'hub'": lambda c: c.pop('template'),
    'system: expected a string, found []': lambda c: c.update(system=[]),
    "fit: expected 'crop' or 'pad' or 'squash', found 3": lambda c: c.update(fit=3),
    'turns: expected a list of at most 10000 objects, found 3': lambda c: c.update(turns=3),
    'turns[1].question: expected a string, found None': lambda c: c['turns'][1].pop('question'),
    'turns[1].question: is not valid Unicode': lambda c: c['turns'][1].update(question='\ud800'),
    'turns[1].answer: expected a string, found 3': lambda c: c['turns'][1].update(answer=3),
    'turns[2].text: unknown, expected question, images': lambda c: c['turns'][2].update(text=''),
    'turns[2]: the question is empty': lambda c: c['turns'][2].update(question=' '),
    'turns[0].marks: expected a list of at most 10000 strings': lambda c: c['turns'][0].update(marks=[3]),
    "turns[0]: mark 'square:1,2,3,4': unknown shape": lambda c: c['turns'][0].update(
        marks=['square:1,2,3,4']
    ),
    'turns[0]: mark point:2,3:#010203 is on image 2': lambda c: c['turns'][0].update(
        marks=['2/point:2,3:#010203']
    ),
    'turns[0]: mark point:50,3:red lies outside': lambda c: c['turns'][0].update(marks=['point:50,3:red']),
    'turns[1]: the question says {mark2}, but there is 1 mark': lambda c: c['turns'][1]['marks'].pop(),
    'turns[0].images[0]: expected base64': lambda c: c['turns'][0].update(images=['ä']),
    'turns[0].images[0]: expected a PNG picture': lambda c: c['turns'][0].update(images=['/9j/']),
    'turns[0].images[0] is damaged or cut short': lambda c: c['turns'][0].update(
        images=[c['turns'][0]['images'][0][:120]]
    ),
    "turns[0].finish_reason: expected '' or 'stop'": lambda c: c['turns'][0].update(finish_reason='x'),
    'turns[0].retries: expected a whole number': lambda c: c['turns'][0].update(retries=-1),
}


@pytest.mark.parametrize('message', CHANGES)
def test_a_file_that_is_not_a_chat_is_an_error_in_one_line(tmp_path, fields, message):
    CHANGES[message](fields)
    (tmp_path / 'chat.json').write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r'chat\.json: ') as error:
        read_chat(tmp_path / 'chat.json')
    assert message in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'chat.json: is not a saved chat'),
        (b'[]', 'is not a saved chat'),
        (b'\xff\xd8\xff\xe0JFIF', 'is not a saved chat'),
        (b'{"turns', 'is damaged or cut short: Unterminated string'),
        (b'{"turns\xff', 'is damaged or cut short'),
        (b'{"a":' * 100_000, 'its JSON is nested too deeply'),
        ('{}'.encode('utf-16'), 'is UTF-16, expected UTF-8'),
        (b'{"turns": [' + b'{},' * 11_000 + b'{}]}', 'more than 10001 objects'),
        (b'{"format": 1, "format": 1}', "'format' occurs twice"),
        (b'{"a": [' + b'0,' * (1 << 20) + b'0]}', 'commas and brackets'),
    ],
)
def test_hostile_json_is_refused(tmp_path, content, message):
    (tmp_path / 'chat.json').write_bytes(content)
    with pytest.raises(ValueError, match=r'chat\.json: ') as error:
        read_chat(tmp_path / 'chat.json')
    assert message in str(error.value)


def test_a_missing_file_and_a_device_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'none\.json: cannot be read: No such file'):
        read_chat(tmp_path / 'none.json')
    with pytest.raises(ValueError, match='expected a regular file, found a device'):
        read_chat(Path('/dev/zero'))


@pytest.mark.parametrize(
    ('limit', 'value', 'message'),
    [
        ('MAX_BYTES', 100, 'it has 0.00 MB'),
        ('MAX_PARTS', 5, 'commas and brackets'),
        ('MAX_PIXELS', 100, 'pixels'),
        ('MAX_TEXT', 10, 'characters, at most 10'),
        ('MAX_TURNS', 2, 'it has 3 turns, at most 2'),
    ],
)
def test_what_is_too_large_is_neither_written_nor_read(tmp_path, fields, monkeypatch, limit, value, message):
    monkeypatch.setattr(chat_files, limit, value)
    with pytest.raises(ValueError, match=r'chat\.json: '):
        read_chat(tmp_path / 'chat.json')
    with pytest.raises(ValueError, match=message):
        write_chat(tmp_path / 'other.json', CHAT, tmp_path / 'model')
    assert not (tmp_path / 'other.json').exists()


def test_a_template_that_the_model_does_not_have_is_an_error(folder, tmp_path, fields):
    fields['template'] = 'checkpoint'
    (tmp_path / 'chat.json').write_text(json.dumps(fields))
    with pytest.raises(ValueError, match='this checkpoint has no chat template'):
        vj.Chat.load(tmp_path / 'chat.json', vj.load(folder))
