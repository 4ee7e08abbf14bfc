"""Every form of row gives its question, marks and right answers; every broken row is reported."""

import json

import pytest

from tests.data import test_vcr
from tests.data.samples import write_lines
from tests.makers import noise
from vipllava_jax.evaluation.cases import read_cases

BOXES = [[4, 5, 20, 25], [0, 0, 9, 9], [10, 2, 30, 8], [3, 3, 30, 20]]
ROW = {'image': 'a.png', 'marks': ['arrow:4,5,20,25:blue'], 'question': 'What is it?', 'answer': 'a fish'}


@pytest.fixture
def folder(tmp_path):
    noise(40, 30).save(tmp_path / 'a.png')
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta' / '1.json').write_text(json.dumps(test_vcr.META))
    return tmp_path


def single_case(folder, **row):
    (case,) = read_cases([row], folder).cases
    return case


def test_a_row_gives_its_question_marks_and_answers(folder):
    case = single_case(folder, **ROW)
    assert [(turn.role, turn.text) for turn in case.turns] == [('user', 'What is it?')]
    assert [str(mark) for mark in case.marks[0]] == ['arrow:4,5,20,25:blue']
    assert (case.images, case.accepted) == ((folder / 'a.png',), ('a fish',))
    assert (case.task.name, case.task.fit, case.task.max_new_tokens) == ('rows', None, 128)
    assert single_case(folder, **{**ROW, 'answer': ['two', 2]}).accepted == ('two', '2')
    named = single_case(folder, **{**ROW, 'question': '<image>\nWhat is <bbox>?'})
    assert named.turns[0].text == 'What is pointed to by the blue arrow?'
    boxed = single_case(folder, image='a.png', bboxes=BOXES[:1], question='What is <bbox0>?', answer='x')
    assert boxed.turns[0].text == 'What is within the red rectangle?'
    words = single_case(folder, question='Hello?', answer='Hello.')
    assert (words.images, words.marks) == ((), ())


def test_the_last_turn_of_a_conversation_is_the_answer(folder):
    turns = [('human', '<image>\nWhat?'), ('gpt', 'A.'), ('human', 'Sure?'), ('gpt', 'yes')]
    talk = [{'from': role, 'value': text} for role, text in turns]
    case = single_case(folder, image='a.png', conversations=talk)
    assert [turn.text for turn in case.turns] == ['What?', 'A.', 'Sure?']
    assert case.accepted == ('yes',)


def test_visual7w_has_the_wording_of_the_authors(folder):
    row = {'id': 'v7w-1', 'image': 'a.png', 'bboxes': BOXES, 'question': 'Which?', 'answer': BOXES[2]}
    case = single_case(folder, **row)
    assert case.turns[0].text.startswith('Which?\nA. The object within the red rectangle\nB. ')
    assert (case.accepted, case.task.name, case.task.fit) == (('C',), 'Visual7W', 'pad')
    assert [(mark.box, mark.width) for mark in case.marks[0]] == [(tuple(box), 3) for box in BOXES]


def test_pointqa_has_the_wording_of_the_authors(folder):
    row = {'id': 'pointQA_twice-1', 'image': 'a.png', 'bboxes': BOXES[:1]}
    case = single_case(folder, **row, general_question='How many?', answer=2)
    assert case.turns[0].text.startswith('How many? The exemplary object is within the rectangle.\n')
    assert (case.accepted, case.task.name, case.task.fit) == (('2',), 'PointQA-LookTwice', 'pad')


def test_a_vcr_row_gives_two_cases(folder):
    answer, reason = read_cases([{**test_vcr.ROW, 'image': 'a.png'}], folder).cases
    assert answer.turns[0].text.startswith('Why is the person at the red point sad, friend?\nA. ')
    assert reason.turns[0].text.startswith('I give you a question and its answer, ')
    assert (answer.accepted, reason.accepted) == (('C',), ('A',))
    assert (answer.task.name, reason.task.name) == ('VCR Q->A', 'VCR QA->R')
    assert answer.task.fit == reason.task.fit == 'squash'
    assert answer.sets == reason.sets == (('VCR Q->AR', 'row 0'),)
    assert len(reason.marks[0]) == 3


def test_a_vip_bench_row_has_no_accepted_answers(folder):
    case = single_case(folder, question_id=7, image='a.png', text='What is within the box?')
    assert (case.name, case.turns[0].text, case.accepted) == ('7', 'What is within the box?', ())
    assert (case.task.name, case.task.fit, case.task.max_new_tokens) == ('ViP-Bench', 'pad', 1024)


def test_groups_are_the_values_of_the_fields_in_by(folder):
    rows = [{**ROW, 'type': 'kind', 'pair': 3}, {**ROW, 'shape': ['arrow', 'point', 'arrow']}]
    a, b = read_cases(rows, folder, by=['type', 'shape'], together=['pair']).cases
    assert (a.groups, b.groups) == ((('kind',), ('-',)), (('-',), ('arrow', 'point')))
    assert (a.sets, b.sets) == ((('pair', '3'),), ())
    with pytest.raises(ValueError, match="no row has the field 'tpye': there are answer, image"):
        read_cases(rows, folder, by=['tpye'])


BROKEN = [
    ('not json', 'not JSON'),
    ({**ROW, 'image': 'none.png'}, "no picture at '.*none.png'"),
    ({**ROW, 'image': 3}, '"image" is 3'),
    ({**ROW, 'question': None}, 'there is no question'),
    ({**ROW, 'question': 3}, 'expected .*"value": a string'),
    ({**ROW, 'answer': None}, 'there is no question'),
    ({**ROW, 'answer': []}, r'"answer" is \[\]'),
    ({**ROW, 'answer': float('nan')}, '"answer" is nan'),
    ({**ROW, 'answer': ['a', '']}, '"answer" is'),
    ({**ROW, 'answer': {'a': 1}}, '"answer" is'),
    ({**ROW, 'marks': ['arrow:4,5,90,25']}, 'lies outside the picture'),
    ({**ROW, 'marks': ['circle:4,5,20,25']}, "unknown shape 'circle'"),
    (
        {'id': 'v7w-1', 'image': 'a.png', 'bboxes': BOXES, 'question': 'x', 'answer': [1, 2, 3, 4]},
        'none of the',
    ),
    ({**test_vcr.ROW, 'image': 'a.png', 'rationale_label': 9}, '"rationale_label" is 9'),
    ({**test_vcr.ROW, 'image': 'a.png', 'rationale_label': True}, '"rationale_label" is True'),
    ({'question_id': 7, 'image': 'a.png', 'text': 'Again?'}, '"question_id" 7 occurs twice'),
    ({'question_id': [1], 'image': 'a.png', 'text': 'Again?'}, r'"question_id" is \[1\]'),
    ({**ROW, 'answer': 'x\ud800'}, '"answer" holds half of a surrogate pair'),
    ({**ROW, 'question': '\udfff'}, '"question" holds half of a surrogate pair'),
    ({**ROW, 'type': ['\ud83d']}, '"type.0" holds half of a surrogate pair'),
    ({**ROW, 'note': json.loads('[' * 99 + ']' * 99)}, '"note" is nested more than 64 levels deep'),
]


@pytest.mark.parametrize(('row', 'message'), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_row_is_reported_with_its_line(folder, row, message):
    good = {'question_id': 7, 'image': 'a.png', 'text': 'What?'}
    file = write_lines(folder / 'rows.jsonl', [good, row])
    if isinstance(row, str):
        file.write_text(json.dumps(good) + '\n' + row)
    with pytest.raises(ValueError, match=f'1 of 2 rows are broken(.|\n)*rows.jsonl, line 2: .*{message}'):
        read_cases(file)
    cases = read_cases(file, skip_broken=True)
    assert (len(cases.cases), cases.left_out) == (1, 1)
    assert 'line 2' in cases.errors[0]


def test_rows_as_dicts_are_checked_like_those_in_files(folder):
    itself: list = []
    itself += [itself, itself]
    invalid = [
        {'answer': '\ud800'},
        {'note': itself},
        {'note': 10**9999},
        {'id': {}},
        {'image': ['a.png'] * 256},
    ]
    rows = [ROW, *({**ROW, **change} for change in invalid), ROW]
    with pytest.raises(ValueError, match='5 of 7 rows are broken') as error:
        read_cases(rows, folder)
    assert all(line.isprintable() and len(line) <= 500 for line in str(error.value).splitlines())
    assert len(read_cases(rows, folder, skip_broken=True).cases) == 2
    with pytest.raises(ValueError, match='expected paths of files, or a list of rows'):
        read_cases([ROW, 'rows.jsonl'])


def test_the_digest_depends_on_the_questions_alone(folder):
    digest = read_cases([ROW], folder).digest
    assert read_cases([{**ROW, 'answer': 'b', 'type': 'kind'}], folder).digest == digest
    for change in ({'question': 'Who?'}, {'marks': ['arrow:4,5,20,26:blue']}, {'image': None, 'marks': None}):
        assert read_cases([{**ROW, **change}], folder).digest != digest
    assert read_cases([ROW, ROW], folder).digest != digest
