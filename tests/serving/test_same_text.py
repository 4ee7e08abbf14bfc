"""Streamed, whole, by `answer` and by the command: the same text, byte for byte."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vipllava_jax as vj
from tests.serving.demo import HEADERS, chat, encoded, image_part, mark_on, scene
from vipllava_jax.inputs.mark_fields import read_mark

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
QUESTIONS: dict[str, tuple[str, int, list[Any], tuple[str, ...]]] = {
    'short': ('What is in the picture?', 1, [], ()),
    'long': ('What do you see from left to right?', 2, [], ()),
    'sentence': ('How many others are like the object {mark}? Answer in a sentence.', 3, [mark_on(3)], ()),
    'two marks': (
        'Is the object {mark1} larger than the one {mark2}?',
        4,
        [mark_on(4), mark_on(4, 1, 'lime')],
        (),
    ),
    'stop': ('What do you see from left to right?', 2, [], (', a',)),
    'stop that never comes': ('What do you see from top to bottom?', 5, [], ('', 'a\n')[1:]),
    'stop at the start': ('What do you see from left to right?', 2, [], ('a',)),
    'unicode': ('Was ist das? 星 ⭐ e\u0301 \u202e{mark}', 6, [mark_on(6, 0, 'blue')], ('é', '⭐')),
}


@pytest.mark.parametrize(('question', 'number', 'marks', 'stop'), QUESTIONS.values(), ids=QUESTIONS)
def test_texts_are_equal(demo, demo_model, question, number, marks, stop):
    body = chat(question, image_part(number, *marks), stop=[*stop], temperature=0)
    whole = demo.ask(headers=HEADERS, **body).json['choices'][0]['message']['content']
    events = demo.ask(headers=HEADERS, **body, stream=True).events
    assert events[-1] == '[DONE]'
    pieces = [event['choices'][0]['delta'].get('content', '') for event in events[:-1]]
    settings = dataclasses.replace(demo_model.settings, max_new_tokens=body['max_tokens'], stop=stop)
    drawn = [read_mark(mark)[1] for mark in marks]
    expected = vj.answer(demo_model, question, scene(number), marks=drawn, settings=settings)
    assert [''.join(pieces).encode(), whole.encode()] == [expected.encode()] * 2


def test_the_command_says_the_same(demo, tmp_path):
    file = tmp_path / 'scene.png'
    file.write_bytes(encoded(scene(2)))
    question = 'What do you see from left to right?'
    ran = subprocess.run(
        [
            *(sys.executable, '-m', 'vipllava_jax', 'ask', '--model', 'demo', '--dtype', 'float32'),
            *('--image', file, '--max-new-tokens', '24', question),
        ],
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    answer = demo.ask(headers=HEADERS, **chat(question, image_part(2))).json['choices'][0]['message']
    assert ran.stdout == f'{answer["content"]}\n'.encode()
