"""`answer` answers a question about images with marks, and refuses invalid input before anything runs."""

import pytest
from PIL import Image

import vipllava_jax as vj
from vipllava_jax.answering import answer, questions
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.world import Scene, Thing

STAR = vj.Mark('rectangle', box=(20, 40, 140, 160))


@pytest.fixture(scope='module')
def scene():
    """Two plain things, which the demo model recognizes."""
    things = (
        Thing('star', 'navy', 'medium', 'plain', 80, 100, 50, 0.1),
        Thing('house', 'brown', 'medium', 'plain', 250, 240, 50, 0.0),
    )
    return picture(Scene(things, 'flat', 5))


@pytest.mark.parametrize(
    ('marks', 'expected'),
    [(STAR, 'a star'), ('ellipse:190,180,310,300:blue', 'a house'), ([STAR], 'a star')],
)
def test_the_answer_is_about_the_marked_thing(demo_model, scene, tmp_path, marks, expected):
    scene.save(tmp_path / 'scene.png')
    for image in (scene, tmp_path / 'scene.png', (tmp_path / 'scene.png').read_bytes(), [scene]):
        assert answer(demo_model, 'What is {mark}?', image, marks=marks) == expected


def test_the_answer_equals_the_steps_in_between(demo_model, scene):
    batch = demo_model.processor('What is within the red rectangle?', vj.draw(scene, STAR), fit='pad')
    out = vj.generate(demo_model.params, batch, cfg=demo_model.cfg, max_new_tokens=9)
    settings = vj.GenerationSettings(max_new_tokens=9)
    text = answer(demo_model, 'What is {mark}?', scene, marks=[STAR], settings=settings, fit='pad')
    assert text == demo_model.processor.decode(out)[0]


def test_several_images_or_none(folder):
    model, image = vj.load(folder), Image.new('RGB', (60, 50))
    settings = vj.GenerationSettings(max_new_tokens=4)
    marks = ['point:9,9', '2/point:5,5']
    assert answer(model, 'Compare {mark} and {mark2}.', [image, image], marks=marks, settings=settings)
    assert answer(model, 'Hello', settings=settings) == answer(model, 'Hello', [], settings=settings)


def test_the_answer_ends_at_the_stop_strings_of_the_template(folder, monkeypatch):
    model = vj.load(folder)
    settings = vj.GenerationSettings(max_new_tokens=40, temperature=2.0, seed=1)
    full = answer(model, 'hi', settings=settings, template='hub')
    stop = full[5:7]
    templates = []

    def stops(self, template):
        templates.append(template)
        return (stop,)

    monkeypatch.setattr(type(model.processor), 'stop_strings', stops)
    assert answer(model, 'hi', settings=settings, template='hub') == full.split(stop)[0].strip()
    assert {*templates} == {'hub'}


def test_the_first_answer_is_returned_if_the_settings_of_the_model_ask_for_several(folder):
    model = vj.load(folder)
    of_file = vj.GenerationSettings(max_new_tokens=4, temperature=2.0, seed=1, num_return_sequences=2)
    one = answer(model, 'Hello', settings=vj.GenerationSettings(max_new_tokens=4, temperature=2.0, seed=1))
    assert answer(model._replace(settings=of_file), 'Hello') == one


IMAGE = Image.new('RGB', (60, 50))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'question': ''}, 'the question is empty: ask something'),
        ({'question': ' \n'}, 'the question is empty: ask something'),
        ({'question': None}, 'the question is None: expected a string'),
        ({'image': 'none.jpg'}, "no picture at 'none.jpg'"),
        ({'image': ['none.jpg']}, "no picture at 'none.jpg'"),
        ({'image': b'x'}, 'not a picture in a known format'),
        ({'image': 3}, 'the picture is of type int: expected a path'),
        ({'image': IMAGE, 'marks': 'point:90,10'}, 'lies outside the picture'),
        ({'image': IMAGE, 'marks': '2/point:9,10'}, 'is on image 2, but there is 1 image'),
        ({'marks': 'point:9,10'}, 'there is a mark but no image'),
        ({'question': 'What is {mark}?', 'image': IMAGE}, 'the question says {mark}, but there are 0 marks'),
        ({'question': '<image> What?'}, 'the text has <image> 1 times for 0 image(s)'),
        ({'question': '<image><image> What?', 'image': IMAGE}, 'the text has <image> 2 times for 1 image(s)'),
        ({'template': 'none'}, "unknown template 'none'"),
        ({'fit': 'none', 'image': IMAGE}, "unknown fit 'none'"),
        ({'settings': vj.GenerationSettings(max_new_tokens=10**6)}, 'request at most'),
        ({'settings': {'temperature': 1.0}}, 'must be a GenerationSettings'),
        (
            {'settings': vj.GenerationSettings(num_return_sequences=2, temperature=1.0)},
            'num_return_sequences is 2, but answer returns one text: generate returns all answers',
        ),
    ],
)
def test_invalid_input_is_an_error_before_anything_runs(folder, arguments, message):
    model = vj.load(folder)._replace(params=None)
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
        answer(model, **{'question': 'What?', **arguments})
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert 'row' not in str(error.value)


def test_a_model_without_a_processor_is_an_error(folder):
    with pytest.raises(ValueError, match='the model has no processor'):
        questions.answer(vj.load(folder)._replace(processor=None), 'What?')


def test_a_name_instead_of_a_model_and_messages_instead_of_a_text_are_type_errors(demo_model):
    with pytest.raises(TypeError, match="the model is 'demo': expected a Model, which load returns"):
        answer('demo', 'What?')
    with pytest.raises(TypeError, match=r'expected a string; model\.processor takes messages and lists'):
        answer(demo_model, ['What?', 'Where?'])
