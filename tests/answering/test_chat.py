"""The answers of a chat are those to all its turns as text, of which it computes only what is new."""

import dataclasses

import numpy as np
import pytest

import vipllava_jax as vj
from tests.answering.conftest import SETTINGS
from tests.compilations import compilations
from tests.generation.test_meshes import on_mesh
from tests.makers import noise
from vipllava_jax.answering.prefixes import common_prefix
from vipllava_jax.answering.replies import replies, with_template_stops
from vipllava_jax.generation.decoding import TokenStream
from vipllava_jax.inputs.chat_templates import ChatTemplate
from vipllava_jax.inputs.prompts import Turn

GREEDY = vj.GenerationSettings(max_new_tokens=20)
RED = vj.Mark('rectangle', box=(5, 5, 40, 40))


def prompt(chat):
    """The ids of the last question and all that precedes it."""
    return chat.model.processor.encode(chat.turns[:-1], len(chat.images), chat.template)


def known(chat):
    """The ids that are computed: the last prompt and its answer."""
    chat._replies.settle()
    return chat._replies._prefix.ids.tolist()


def check(chat, settings=None):
    """The last answer is that to all turns as text, in which the images are."""
    processor = chat.model.processor
    batch = processor(chat.turns[:-1], chat.images, template=chat.template, fit=chat.fit)
    settings = with_template_stops(settings or chat.settings, processor, chat.template)
    (fresh,) = replies(chat.model, batch, settings)
    assert chat.turns[-1] == Turn('assistant', fresh.text())
    assert chat.finish_reason == fresh.finish_reason
    ids = known(chat)[len(prompt(chat)) :]
    assert ids[: len(fresh.tokens)] == fresh.tokens[: len(ids)]


@pytest.mark.slow
def test_each_turn_is_that_of_a_fresh_computation(model):
    chat = vj.Chat(model)
    first = chat.ask('What is {mark}?', noise(60, 50), RED)
    assert first == vj.answer(model, 'What is {mark}?', noise(60, 50), marks=RED)
    check(chat)
    assert chat.cached_tokens == 0
    before = known(chat)
    stream = chat.stream('Compare {mark} and {mark2}.', noise(50, 60, 1), [RED, '1/point:9,9:blue'])
    with compilations('prefill_batch|decode_chunk') as compiled:
        chat.compile()
        of_compile = [*compiled]
        assert ''.join(stream) == chat.turns[-1].text
        assert compiled == of_compile
    check(chat)
    # A mark on an earlier image changes it.
    assert 0 < chat.cached_tokens < before.index(model.cfg.image_token) + 1
    assert [turn.role for turn in chat.turns] == ['user', 'assistant'] * 2
    assert chat.turns[2].text == '<image>\nCompare within the red rectangle and at the blue point.'
    assert len(chat.images) == 2
    expected = vj.draw(noise(60, 50), [RED, vj.Mark('point', point=(9, 9), color='blue')])
    np.testing.assert_array_equal(chat.images[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize('template', ['checkpoint', pytest.param('plain', marks=pytest.mark.by_hand)])
def test_every_template_can_be_continued(model, template):
    source = model.processor.chat_template or ChatTemplate(
        "{% for m in messages %}###{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
        '{% if add_generation_prompt %}###assistant:{% endif %}'
    )
    model = model._replace(processor=dataclasses.replace(model.processor, chat_template=source))
    stop = vj.GenerationSettings(max_new_tokens=40, temperature=2.0, seed=2, stop=['e', 's'])
    chat = vj.Chat(model, template=template, system='Be brief.', settings=stop, fit='pad')
    chat.ask('Hello')
    check(chat)
    length = len(prompt(chat))
    chat.ask('And this?', [noise(9, 90, 2)] * 2)
    check(chat)
    assert chat.cached_tokens >= length - 2
    assert chat.turns[0] == Turn('system', 'Be brief.')


@pytest.mark.slow
def test_beams_go_on_from_the_best_answer_without_its_cache(model):
    chat = vj.Chat(model, settings=dataclasses.replace(GREEDY, num_beams=2))
    for question in ('Hello', 'What is this?'):
        chat.ask(question)
        turns, answer = chat.turns[:-1], chat.turns[-1].text
        out = vj.generate(model.params, model.processor(turns), cfg=model.cfg, settings=chat.settings)
        assert answer == model.processor.decode(out)[0]
    assert chat.cached_tokens == 0


@pytest.mark.slow
def test_a_mesh_changes_nothing(model):
    chat = vj.Chat(model, settings=GREEDY)
    sharded = vj.Chat(model._replace(params=on_mesh(model.params, {'data': 2, 'tensor': 2})), settings=GREEDY)
    for question, images in [('What?', noise(60, 50)), ('Why?', ())]:
        assert chat.ask(question, images) == sharded.ask(question, images)
        assert chat.cached_tokens == sharded.cached_tokens


@pytest.mark.slow
def test_the_demo_model_answers_about_marks_in_a_chat(demo_model):
    chat = vj.Chat(demo_model, template='checkpoint')  # which has parts for images
    chat.ask('What is {mark}?', 'docs/coffee.jpg', 'rectangle:0.3,0.3,0.6,0.6:red')
    check(chat)
    length = len(prompt(chat))
    for images in ((), 'docs/coffee.jpg'):
        chat.ask('How many things are there?', images)
        check(chat)
        assert chat.cached_tokens > length  # its answers are the tokens of their text


@pytest.mark.slow
def test_undo_edit_and_retry_go_on_from_the_longest_known_beginning(model):
    chat = vj.Chat(model)
    first = chat.ask('What is it?', noise(60, 50), RED)
    ids, length = known(chat), len(prompt(chat))
    second = chat.ask('Why is that?')
    check(chat)
    assert chat.cached_tokens == len(common_prefix([ids, prompt(chat)])) >= length
    before, length = chat.turns, len(prompt(chat))
    other = dataclasses.replace(SETTINGS, seed=8)
    assert chat.retry(settings=other) == chat.turns[-1].text
    check(chat, dataclasses.replace(SETTINGS, seed=9))
    assert chat.cached_tokens == length - 1
    undone = chat.undo()
    assert (undone.text, chat.turns) == ('Why is that?', before[:2])
    assert [(q.text, q.marks) for q in chat.questions] == [('What is it?', (f'1/{RED}',))]
    assert chat.ask(*undone) == second
    assert chat.turns == before
    ids = known(chat)
    assert chat.edit(2, 'Why is it red?') == chat.turns[-1].text
    check(chat)
    assert chat.cached_tokens == len(common_prefix([ids, prompt(chat)])) > length // 2
    assert chat.edit(0, 'What is {mark}?', marks='point:9,9:lime') == chat.turns[-1].text
    assert chat.turns[0].text == 'What is at the lime point?'
    assert len(chat.turns) == 2
    assert chat.cached_tokens < length - model.cfg.vision.patches
    check(chat)
    chat.edit(0, 'What is it?', marks=[RED])
    assert chat.turns[-1].text == first
    assert chat.edit(-1, 'A tree, <image>.') == 'A tree, <image>.'
    chat.ask('Why?')
    assert chat.turns[1].text == 'A tree, < image>.'
    check(chat)


def test_a_retry_draws_with_the_next_seed(model):
    chat = vj.Chat(model)
    answers = [chat.ask('Hello'), chat.retry(), chat.retry()]
    assert len({*answers}) == 3
    for n, answer in enumerate(answers):
        settings = dataclasses.replace(SETTINGS, seed=5 + n)
        assert answer == vj.Chat(model, settings=settings).ask('Hello')


def test_an_interrupted_answer_stays_as_far_as_it_came(model):
    settings = dataclasses.replace(SETTINGS, max_new_tokens=60)
    chat = vj.Chat(model, settings=settings)
    whole = chat.ask('Hello')
    chat.undo()
    stream = chat.stream('Hello')
    assert chat.turns == []  # nothing has run
    piece = next(stream)
    assert chat.turns == [Turn('user', 'Hello'), Turn('assistant', piece)]
    assert whole.startswith(piece)
    assert len(piece) < len(whole)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    assert chat.turns[1].text == piece
    assert chat.finish_reason == ''
    chat.undo()
    stream = chat.stream('Hello')
    assert next(stream) == piece
    with pytest.raises(ValueError, match='the question is empty'):
        chat.ask('')  # which does not end the answer
    piece += next(stream)
    chat.ask('Why?')
    assert [*stream] == []
    assert chat.turns[1].text == piece
    check(chat)
    chat.retry()
    check(chat, dataclasses.replace(settings, seed=6))


def test_an_interrupt_may_take_what_was_being_computed(model, monkeypatch):
    def fail(_):
        raise RuntimeError('Array has been deleted')

    chat = vj.Chat(model)
    chat.ask('Hello')
    monkeypatch.setattr(TokenStream, 'computed', fail)
    chat.ask('Why?')
    cached = chat.cached_tokens
    chat.retry()
    assert chat.cached_tokens == cached > 0


def test_an_answer_that_fails_before_its_first_text_changes_nothing(model):
    def fail(*_):
        raise KeyboardInterrupt

    chat = vj.Chat(model)
    chat.ask('Hello')
    before = chat.turns
    broken = dataclasses.replace(SETTINGS, processors=[fail])
    for run in (
        chat.retry,
        lambda **given: chat.ask('Why?', **given),
        lambda **given: chat.edit(0, 'Hi', **given),
    ):
        with pytest.raises(KeyboardInterrupt):
            run(settings=broken)
        assert chat.turns == before
    chat.ask('Why?')
    check(chat)
