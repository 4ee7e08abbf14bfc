"""`choose` scores answers as training would, and refuses invalid input before anything runs."""

import jax
import numpy as np
import pytest
from PIL import Image

import vipllava_jax as vj
from tests.makers import noise
from vipllava_jax.answering.choices import encode_options
from vipllava_jax.data.conversations import ANSWER_ENDINGS, IGNORE, encode_conversation
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.world import Scene, Thing
from vipllava_jax.inputs.processor import Processor

forward = jax.jit(vj.forward, static_argnames='cfg')
OPTIONS = ['A dog.', 'A sofa', 'two people that are waiting for a train']


@pytest.fixture(scope='module')
def model(folder):
    return vj.load(folder)


def score(model, question, option, images):
    """The log-probability of an option and its number of ids, by a forward pass over the whole text."""
    batch = model.processor(question, images)
    answer = model.processor.tokenizer.encode(f'ASSISTANT: {option}</s>')
    answer = answer[len(model.processor.tokenizer.encode('ASSISTANT:')) :]
    length = int(batch.lengths[0])
    tokens = np.pad(batch.tokens, ((0, 0), (0, 64)))
    tokens[0, length : length + len(answer)] = answer
    logits = np.float64(forward(model.params, tokens, batch.images, cfg=model.cfg)[0])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[range(length - 1, length - 1 + len(answer)), answer].sum(), len(answer)


@pytest.mark.parametrize('count', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_scores_are_those_of_whole_texts(model, count):
    images = [noise(40, 30, seed=n) for n in range(count)]
    found = [score(model, 'What is it?', option, images) for option in OPTIONS]
    sums, lengths = np.array(found).T
    chosen = vj.choose(model, 'What is it?', OPTIONS, images)
    np.testing.assert_allclose(chosen.scores, sums, atol=1e-4)
    assert chosen.best == sums.argmax()
    chosen = vj.choose(model, 'What is it?', OPTIONS, images, mean=True)
    np.testing.assert_allclose(chosen.scores, sums / lengths, atol=1e-5)
    assert chosen.best == (sums / lengths).argmax()


def test_the_demo_model_chooses_what_is_marked(demo_model):
    things = (
        Thing('star', 'navy', 'medium', 'plain', 80, 100, 50, 0.1),
        Thing('house', 'brown', 'medium', 'plain', 250, 240, 50, 0.0),
    )
    image = picture(Scene(things, 'flat', 5))
    options = ['a house', ' a star ', 'a star']
    star = vj.Mark('rectangle', box=(20, 40, 140, 160))
    chosen = vj.choose(demo_model, 'What is {mark}?', options, image, marks=star)
    assert chosen.best == 1
    assert chosen.scores[1] == pytest.approx(chosen.scores[2], abs=1e-6)
    assert chosen.scores[1] > np.log(0.5)
    house = vj.Mark('ellipse', box=(190, 180, 310, 300), color='blue')
    assert vj.choose(demo_model, 'What is {mark}?', options, image, marks=house).best == 0


@pytest.mark.parametrize('template', ANSWER_ENDINGS)
def test_the_ids_of_an_option_are_the_targets_of_training(folder, template):
    processor = Processor.load(folder)
    turns = [vj.Turn('user', '' if template == 'plain' else 'What is it?')]
    dropped, ids = encode_options(processor, turns, 1, OPTIONS, template)
    for option, found in zip(OPTIONS, ids, strict=True):
        example = encode_conversation([*turns, vj.Turn('assistant', option)], 1, processor, template)
        assert found == example.targets[example.targets != IGNORE].tolist()
        prompt = processor.encode(turns, 1, template)
        assert example.tokens[: len(prompt) - dropped].tolist() == prompt[: len(prompt) - dropped]


def test_options_after_other_templates_follow_a_space_and_have_the_end_token(folder):
    processor = Processor.load(folder)
    dropped, ((*ids, end),) = encode_options(processor, [vj.Turn('user', 'Hi')], 0, ['A dog.'], 'hub')
    assert (dropped, processor.decode(ids), end) == (0, 'A dog.', processor.tokenizer.eos)
    prompt = processor.encode([vj.Turn('user', 'Hi')], 0, 'hub')
    text = processor.tokenizer.decode_untrimmed([*prompt, *ids])
    assert text.endswith('###Assistant: A dog.')


def test_options_begin_at_the_same_id_if_the_tokenizer_joins_one_with_the_prompt(folder, monkeypatch):
    processor = Processor.load(folder)
    encode = type(processor.tokenizer).encode

    def joined(self, text):
        """The last two ids of the prompt become 3, if it is followed by 'A dog.'."""
        ids, prompt = encode(self, text), encode(self, text.partition('ASSISTANT:')[0] + 'ASSISTANT:')
        return [*ids[: len(prompt) - 2], 3, *ids[len(prompt) :]] if text.endswith('A dog.</s>') else ids

    plain = encode_options(processor, [vj.Turn('user', 'Hi')], 0, OPTIONS, 'vipllava')
    monkeypatch.setattr(type(processor.tokenizer), 'encode', joined)
    dropped, ids = encode_options(processor, [vj.Turn('user', 'Hi')], 0, OPTIONS, 'vipllava')
    prompt = processor.encode([vj.Turn('user', 'Hi')], 0, 'vipllava')
    assert (plain.dropped, dropped) == (0, 2)
    assert ids == [[3, *plain.ids[0]], [*prompt[-2:], *plain.ids[1]], [*prompt[-2:], *plain.ids[2]]]


IMAGE = Image.new('RGB', (60, 50))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'options': []}, 'there are no options'),
        ({'options': 'ab'}, "the options are 'ab': expected a list of strings"),
        ({'options': 3}, 'the options are 3: expected a list of strings'),
        ({'options': ['a', None]}, 'options[1] is None: expected a string'),
        ({'options': ['a', ' \n']}, 'options[1] is empty'),
        ({'options': ['<image>'], 'image': IMAGE}, 'options[0] says <image>'),
        ({'options': ['a', '{mark2}']}, 'options[1] says {mark2}, but there are 0 marks'),
        ({'options': ['a', 'b ' * 2000]}, 'of answer 1 exceed the context of 1024'),
        ({'question': ' '}, 'the question is empty'),
        ({'image': 'none.jpg'}, "no picture at 'none.jpg'"),
        ({'marks': 'point:9,10'}, 'there is a mark but no image'),
        ({'template': 'none'}, "unknown template 'none'"),
        ({'template': 'checkpoint'}, 'this checkpoint has no chat template'),
    ],
)
def test_invalid_input_is_an_error_before_anything_runs(model, arguments, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
        vj.choose(model._replace(params=None), **{'question': 'What?', 'options': ['a'], **arguments})
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert 'row' not in str(error.value)
