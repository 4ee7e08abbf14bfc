"""`vipllava ask --questions` answers each line of a file as if it were asked alone."""

import json

import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax import loading
from vipllava_jax.answering import replies
from vipllava_jax.cli import ask_questions
from vipllava_jax.cli.question_file import ListedQuestion
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.messages import safe_answer

MARK = 'rectangle:20,10,60,50:red'
QUESTIONS = ('What is {mark}?', 'Describe the object {mark}.', 'How many objects are there?')


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / 'questions.txt'
    path.write_text('\ufeff\n' + '\r\n\r\n'.join(QUESTIONS), encoding='utf-8')
    return path


def test_each_answer_follows_its_question_and_equals_that_of_the_question_alone(
    vipllava, folder, photo, listed, monkeypatch
):
    monkeypatch.setattr(ask_questions, 'ROWS', 2)  # the last of two batches is filled
    about = ('ask', '--model', folder, '--image', photo, '--mark', MARK, '--max-new-tokens', 9)
    code, out, err = vipllava(*about, '--questions', listed)
    assert (code, err) == (0, '')
    alone = [json.loads(vipllava(*about, '--json', question).out) for question in QUESTIONS]
    blocks = zip(QUESTIONS, alone, strict=True)
    assert out == '\n'.join(f'> {question}\n{safe_answer(report["answer"])}\n' for question, report in blocks)
    ran = vipllava(*about, '--json', '--questions', '-', stdin=listed.read_text())
    varying = {'load_seconds', 'first_token_seconds', 'tokens_per_second', 'seed'}
    for line, question, report in zip(ran.out.splitlines(), QUESTIONS, alone, strict=True):
        found = json.loads(line)
        assert found.pop('question') == question
        assert found.keys() == report.keys()
        assert [found[name] for name in found.keys() - varying] == [
            report[name] for name in found.keys() - varying
        ]


def test_several_answers_have_headers_after_their_question(monkeypatch, capsys):
    monkeypatch.setattr(replies, 'replies', lambda *_: ['a', 'b', 'c', 'd', 'of a repeated row', '…'])
    questions = [ListedQuestion(f'line {n}', text, text) for n, text in enumerate(['What?', 'Who?'])]
    settings = vj.GenerationSettings(num_return_sequences=2, temperature=1.0)
    part = ask_questions.QuestionBatch(questions, None, settings)
    ask_questions.print_answers(part, ask_questions.grouped_replies(None, part, None), is_first=True)
    headers = '--- answer 1 of 2 ---\n{}\n--- answer 2 of 2 ---\n{}\n'
    expected = '> What?\n' + headers.format('a', 'b') + '\n> Who?\n' + headers.format('c', 'd')
    assert capsys.readouterr().out == expected


def test_batches_have_equal_sizes_and_each_question_its_own_seed_and_limit():
    questions = [ListedQuestion(f'line {n}', 'q', 'q') for n in range(70)]
    rows = np.arange(1, 71, dtype=np.int32)
    prompts = Batch(rows[:, None], rows, np.zeros((1, 1, 2, 2, 3), np.float32), np.ones(1, np.int32))
    limits = [*range(1, 71)]
    parts = [*ask_questions.divide(questions, prompts, limits, vj.GenerationSettings(seed=2**32 - 2))]
    assert [len(part.questions) for part in parts] == [24, 24, 22]
    assert [part.batch.tokens.shape for part in parts] == [(24, 1)] * 3
    assert parts[2].batch.lengths.tolist() == [*range(49, 71), 70, 70]
    assert parts[0].settings.seed[:3] == (2**32 - 2, 2**32 - 1, 0)
    assert parts[1].settings.max_new_tokens == (*range(25, 49),)
    beams = vj.GenerationSettings(seed=0, num_beams=5)
    assert len(next(ask_questions.divide(questions, prompts, limits, beams)).questions) == 6


@pytest.mark.parametrize(
    ('args', 'stdin', 'message'),
    [
        ([], '', 'the questions on stdin: no question: write one on each line'),
        ([], ' \n\n', 'no question'),
        ([], b'hi\n\xff', 'the questions on stdin is not UTF-8 at byte 3'),
        ([], 'hi\nWhat is {mark9}?', 'the questions on stdin, line 2: the question says {mark9}'),
        ([], 'hi\n<image>', 'line 2: the text has <image> 1 times'),
        ([], 'hi\n\n' + 'what ' * 2000, 'line 3: a prompt of'),
        ([], 'hi\n' * 10_001, '10001 questions, expected at most 10000'),
        (['--max-new-tokens', '2000'], 'hi', 'line 1: a prompt of'),
        (['--image', '-'], 'hi', 'both read stdin'),
        (['a question'], 'hi', "leave out 'a question'"),
        (['--questions', 'none.txt'], 'hi', 'none.txt: cannot be read'),
    ],
)
def test_an_unusable_list_is_one_line_before_the_weights_are_loaded(
    vipllava, folder, monkeypatch, args, stdin, message
):
    monkeypatch.setattr(loading.Source, 'load', None)
    ran = vipllava('ask', '--model', folder, '--questions', '-', *args, stdin=stdin)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err


def test_the_list_of_questions_is_not_overwritten(vipllava, folder, photo, tmp_path):
    listed = tmp_path / 'questions.png'
    listed.write_text('hi')
    ran = vipllava('ask', '--model', folder, '--image', photo, '--questions', listed, '--save-image', listed)
    assert (ran.code, listed.read_text()) == (2, 'hi')
