"""A question is encoded as for `answer`, and everything but its pictures is checked at once."""

import numpy as np
import pytest
from PIL import Image

import vipllava_jax as vj
from vipllava_jax import GenerationSettings, Turn
from vipllava_jax.engine.question import Question, QuestionError, encode

RED = vj.Mark('rectangle', box=(10, 10, 40, 40))
PICTURE = Image.new('RGB', (60, 50))


def test_the_ids_are_those_of_the_processor(model):
    pictures = [PICTURE, np.zeros((40, 50, 3), np.uint8)]
    batch = model.processor('What?', pictures)
    found = encode(Question('What?', pictures), model)
    assert found.ids.dtype == np.int32
    assert found.ids.tolist() == batch.tokens[0, : batch.lengths[0]].tolist()
    assert (found.limit, found.eos, found.stop_ids) == (512, (2,), ())


def test_no_picture_is_opened(model):
    assert len(encode(Question('What?', ['nowhere.png']), model).question.images) == 1
    assert encode(Question('What?', b'no picture'), model).question.images == (b'no picture',)


def test_a_single_image_or_mark_needs_no_list(model):
    found = encode(Question('What is {mark}?', 'nowhere.png', RED), model)
    assert found.question.images == ('nowhere.png',)
    expected = model.processor.encode([Turn('user', 'What is within the red rectangle?')], 1)
    assert found.ids.tolist() == expected


def test_phrases_of_marks_stand_in_a_text_and_not_in_turns(model):
    marks = ['2/arrow:1,1,5,5:blue', RED]
    text = encode(Question('{mark2} and {mark}', [PICTURE] * 2, marks), model)
    phrases = 'within the red rectangle and pointed to by the blue arrow'
    assert text.ids.tolist() == model.processor.encode([Turn('user', phrases)], 2)
    turns = [
        Turn('system', 'Be brief.'),
        Turn('user', '{mark}'),
        Turn('assistant', 'No'),
        Turn('user', 'Why?'),
    ]
    found = encode(Question(turns, [PICTURE], marks[1]), model)
    assert found.ids.tolist() == model.processor.encode(turns, 1)


def test_the_settings_are_complete(model):
    found = encode(
        Question('What?', settings=GenerationSettings(temperature=1, stop='x'), template='hub'), model
    )
    assert found.settings.stop == ('x', '###')
    assert isinstance(found.settings.seed, int)
    assert found.stop_ids == (
        model.processor.tokenizer.token_to_id('x'),
        model.processor.tokenizer.token_to_id('###'),
    )
    other = encode(Question('What?', settings=GenerationSettings(temperature=1)), model)
    assert other.settings.seed != found.settings.seed
    given = GenerationSettings(seed=7, temperature=1, max_new_tokens=9, eos=[5, 6], num_return_sequences=3)
    found = encode(Question('What?'), model._replace(settings=given))
    assert (found.settings, found.limit, found.eos) == (given, 9, (5, 6))


def test_the_context_limits_an_answer(model):
    words = 'What? ' * 150
    found = encode(Question(words), model)
    assert found.limit == model.cfg.text.context - len(found.ids) < 512


FAULTS = {
    'the question is empty': dict(prompt=' \n'),
    'is empty: ask something': dict(prompt=[Turn('user', '  ')]),
    'expected a turn of the user': dict(prompt=[]),
    'the prompt is 3: expected a text': dict(prompt=3),
    'turn 1 is': dict(prompt=[{'role': 'user'}]),
    'unknown role': dict(prompt=[Turn('nobody', 'hi')]),
    'not valid Unicode': dict(prompt='\ud800'),
    'exceed the context of 1024': dict(prompt='a b ' * 2000),
    'characters, which the context of 1024 tokens cannot hold': dict(prompt='a' * 300_000),
    '<image> 2 times for 1 image': dict(prompt='<image><image>', images=[PICTURE]),
    '<image> 1 times for 0 image': dict(prompt='<image> hi'),
    'there are 0 marks': dict(prompt='{mark}'),
    'but there is 1 mark': dict(prompt='{mark9}', images=[PICTURE], marks=[RED]),
    'there is a mark but no image': dict(marks=[RED]),
    'on image 2, but there is 1 image': dict(images=[PICTURE], marks=['2/point:1,1']),
    'unknown shape': dict(images=[PICTURE], marks=['blob:1,1']),
    'expected a Mark': dict(images=[PICTURE], marks=[3]),
    'image 2 is of type int': dict(images=[PICTURE, 3]),
    'image 1 is an array of float32': dict(images=[np.zeros((3, 3), np.float32)]),
    'unknown template': dict(template='none'),
    'no chat template': dict(template='checkpoint'),
    'unknown fit': dict(fit='stretch'),
    'the id is 3': dict(id=3),
    'settings is 3': dict(settings=3),
    'num_beams is 2': dict(settings=GenerationSettings(num_beams=2)),
    'prompt_lookup_num_tokens is 3': dict(settings=GenerationSettings(prompt_lookup_num_tokens=3)),
    'there are processors': dict(settings=GenerationSettings(processors=[print])),
    'seed is [1, 2], but a question is a single row': dict(settings=GenerationSettings(seed=[1, 2])),
    'exponential_decay_length_penalty is [3]': dict(
        settings=GenerationSettings(exponential_decay_length_penalty=([3], 1.1))
    ),
    'the vocabulary ends at 399': dict(settings=GenerationSettings(suppress_tokens=[400])),
    'request at most': dict(settings=GenerationSettings(max_new_tokens=1020)),
    'min_new_tokens is 600, but max_new_tokens is 512': dict(settings=GenerationSettings(min_new_tokens=600)),
    'which suppress_tokens excludes': dict(
        settings=GenerationSettings(forced_eos_token_id=2, suppress_tokens=[2])
    ),
}


@pytest.mark.parametrize('message', FAULTS)
def test_what_can_never_be_answered_is_refused_at_once(model, message):
    with pytest.raises(QuestionError) as error:
        encode(Question(**{'prompt': 'What?', **FAULTS[message]}), model)
    assert message in str(error.value)
    assert 'row 0' not in str(error.value)


def test_something_else_is_no_question(model):
    with pytest.raises(TypeError, match='expected a Question, found'):
        encode('What?', model)
