"""`vj.answers`: rows in, lines out; errors are lines, and few rows are read ahead."""

import base64
import io
import itertools

import pytest
from PIL import Image

from tests.batch_files.fakes import FakeEngine
from vipllava_jax.asking import many
from vipllava_jax.batch_files.answers import answers
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.marks import Mark


def by_id(lines):
    lines = [*lines]
    found = {line['id']: line for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture
def engine():
    with FakeEngine() as engine:
        yield engine


def test_every_row_has_one_line(engine):
    rows = [{'id': f'r{n}', 'prompt': f'What is {n}?'} for n in range(300)]
    lines = by_id(answers(engine, rows))
    assert lines.keys() == {row['id'] for row in rows}
    assert lines['r7'] == {
        'id': 'r7',
        'answer': 'What is 7?',
        'finish_reason': 'stop',
        'prompt_tokens': 7,
        'new_tokens': 1,
    }


def test_ordered_lines_have_the_order_of_the_rows(engine):
    rows = [{'prompt': f'{n}'} if n % 7 else {'prompt': 3} for n in range(300)]
    lines = [*answers(engine, rows, ordered=True)]
    assert [line['id'] for line in lines] == [f'line {n}' for n in range(1, 301)]
    assert [('error' in line) for line in lines] == [n % 7 == 0 for n in range(300)]
    unordered = [line['id'] for line in answers(engine, rows)]
    assert unordered != sorted(unordered, key=lambda id: int(id.split()[1]))


def test_few_rows_are_read_ahead(engine):
    count = itertools.count()
    rows = ({'prompt': f'{n}'} for n in count)
    lines = answers(engine, rows)
    for _ in range(1000):
        next(lines)
    ahead = many.look_ahead(engine)
    assert 1000 <= next(count) <= 1000 + 2 * ahead + 1
    assert engine.most <= ahead
    lines.close()
    assert engine.submit(engine.asked[0]).result(5)  # it stays open


def test_closing_cancels_what_is_not_answered():
    with FakeEngine() as engine:
        replies = []
        submit = engine.submit
        engine.submit = lambda question: replies.append(submit(question)) or replies[-1]
        lines = answers(engine, ({'prompt': f'{n}'} for n in itertools.count()))
        next(lines)
        lines.close()
        assert all(reply.ended.wait(1) for reply in replies)


def test_a_full_queue_is_waited_for():
    with FakeEngine(queue=3) as engine:
        rows = [{'id': f'{n}', 'prompt': f'{n}'} for n in range(100)]
        assert len(by_id(answers(engine, rows))) == 100


def test_questions_that_fail_are_lines_and_a_broken_engine_is_an_error():
    def fails(question):
        return {
            'bad': QuestionError('the picture\n is \x1b[31mdamaged'),
            'dead': RuntimeError('no device'),
        }.get(question.prompt)

    with FakeEngine(fails=fails) as engine:
        rows = [{'prompt': 'good'}, {'prompt': 'bad', 'page': 3}]
        assert by_id(answers(engine, rows))['line 2'] == {
            'id': 'line 2',
            'error': 'the picture is \\x1b[31mdamaged',
            'row': {'page': 3},
        }
        with pytest.raises(RuntimeError, match='no device'):
            [*answers(engine, [*rows, {'prompt': 'dead'}])]


def test_marks_that_are_cut_off_are_one_warning(engine):
    with pytest.warns(UserWarning, match=r'^line \d: a mark is cut off$') as warned:
        [*answers(engine, [{'prompt': f'cut {n}'} for n in range(9)])]
    assert len(warned) == 1


def test_several_samples_are_a_list(engine):
    settings = GenerationSettings(num_return_sequences=3, temperature=1.0)
    (line,) = answers(engine, [{'prompt': 'Why?'}], settings=settings)
    assert line == {
        'id': 'line 1',
        'answers': ['Why?', 'Why? 1', 'Why? 2'],
        'finish_reason': ['stop'] * 3,
        'prompt_tokens': 7,
        'new_tokens': [1, 2, 3],
    }


def test_the_first_of_the_models_samples_is_the_default(engine):
    engine.model.settings = GenerationSettings(num_return_sequences=3, temperature=1.0)
    (line,) = answers(engine, [{'prompt': 'Why?'}])
    assert line['answer'] == 'Why?'


def test_unknown_keys_are_copied(engine):
    (line,) = answers(engine, [{'prompt': 'Why?', 'page': 3, 'deep': {'a': [1, None]}, 'fit': 'pad'}])
    assert line['row'] == {'page': 3, 'deep': {'a': [1, None]}}
    assert engine.asked[0].fit == 'pad'


def test_pictures_are_paths_or_data(engine, tmp_path):
    png = io.BytesIO()
    Image.new('RGB', (4, 3), 'red').save(png, 'PNG')
    text, picture = base64.b64encode(png.getvalue()).decode(), Image.new('RGB', (2, 2))
    forms = ['a.png', f'data:image/png;base64,{text}', {'base64': text}, png.getvalue(), picture]
    lines = by_id(answers(engine, [{'prompt': 'x', 'images': forms}], images=tmp_path))
    assert 'answer' in lines['line 1']
    assert [*engine.asked[0].images] == [tmp_path / 'a.png', *[png.getvalue()] * 3, picture]


@pytest.mark.parametrize('form', ['a.png', '/etc/passwd', ['../a.png'], [{'base64': ''}, 'a.png']])
def test_rows_of_strangers_read_no_files(engine, form):
    (line,) = answers(engine, [{'prompt': 'x', 'images': form}], images=None)
    assert 'paths are not read here' in line['error']
    assert not engine.asked


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (3, 'expected a dict with a "prompt", found 3'),
        ({}, 'there is no "prompt", but no fields'),
        ({'question': 'x'}, 'there is no "prompt", but \'question\''),
        ({'prompt': ' '}, '"prompt" is \' \', expected a question'),
        ({'prompt': ['x']}, '"prompt" is'),
        ({'prompt': 'x', 'id': ''}, '"id" is \'\', expected a string'),
        ({'prompt': 'x', 'id': True}, '"id" is True'),
        ({'prompt': 'x', 'id': [1]}, '"id" is [1]'),
        ({'prompt': 'x', 'id': 'x' * 1001}, '"id" has 1,001 characters'),
        ({'prompt': 'x', 'id': 10**5000}, 'digits'),
        ({'prompt': 'x\ud800'}, 'half of a surrogate pair'),
        ({'prompt': 'x', 'image': 'a', 'images': 'b'}, 'write one of them'),
        ({'prompt': 'x', 'image': 3}, '"image" is 3, expected a path'),
        ({'prompt': 'x', 'image': ''}, '"image" is \'\', expected a path'),
        ({'prompt': 'x', 'images': ['a'] * 256}, 'at most 255'),
        ({'prompt': 'x', 'image': 'https://x.org/a.png'}, 'download the picture'),
        ({'prompt': 'x', 'image': 'data:image/png,x'}, 'expected a data URI in base64'),
        ({'prompt': 'x', 'image': {'base64': 'é'}}, '"image": the data is not valid base64'),
        ({'prompt': 'x', 'image': {'base64': 'x', 'path': 'y'}}, '"image" is'),
        ({'prompt': 'x', 'image': {'base64': 'A' * (21 << 20) * 2}}, 'more than 20 MiB'),
        ({'prompt': 'x', 'marks': 3}, '"marks"[0]: expected a mark'),
        ({'prompt': 'x', 'marks': ['rectangle:1']}, '"marks"[0]: mark \'rectangle:1\''),
        ({'prompt': 'x', 'marks': [{'shape': 'star'}]}, '"marks"[0]: unknown shape'),
        ({'prompt': 'x', 'marks': [{'box': [1, 2, 3, 4]}]}, 'the mark has no "shape"'),
        ({'prompt': 'x', 'marks': [{'shape': 'point', 'point': [1, 2], 'image': 0}]}, 'image 0'),
        ({'prompt': 'x', 'template': 'x'}, '"template" is \'x\': choose vipllava'),
        ({'prompt': 'x', 'template': []}, '"template" is []'),
        ({'prompt': 'x', 'fit': 'stretch'}, '"fit" is \'stretch\': choose crop'),
        ({'prompt': 'x', 'fit': {}}, '"fit" is {}'),
        ({'prompt': 'x', 'settings': 3}, '"settings" is 3'),
        ({'prompt': 'x', 'settings': {'top_p': 2}}, '"settings": top_p is 2'),
        ({'prompt': 'x', 'settings': {'do_sample': True}}, 'temperature above 0 samples'),
        ({'prompt': 'x', 'settings': {'temperature': [1, 2]}}, 'give one number'),
        ({'prompt': 'x', 'settings': {'processors': []}}, 'processors cannot be set'),
        ({'prompt': 'x', 'settings': {'logprobs': 1}}, 'logprobs cannot be set'),
        ({'question_id': ' ', 'text': 'x'}, '"question_id" is'),
        ({'question_id': '1', 'text': 3}, 'turn 0 is'),
    ],
)
def test_an_invalid_row_is_an_error_of_one_line(engine, row, message, tmp_path):
    lines = [*answers(engine, [row, {'prompt': 'good'}], images=tmp_path, ordered=True)]
    assert message in lines[0]['error']
    assert '\n' not in lines[0]['error']
    assert len(lines[0]['error']) <= 500
    assert lines[0]['id'] in ('line 1', '1')
    assert lines[1]['answer'] == 'good'


def test_a_repeated_id_is_an_error_with_a_name_of_its_own(engine):
    rows = [{'id': id, 'prompt': 'x'} for id in ('a', 'a', 'line 2', 7, '7', 'b')]
    lines = [*answers(engine, rows, ordered=True)]
    assert [line['id'] for line in lines] == ['a', 'line 2', 'line 3', '7', 'line 5', 'b']
    assert [('error' in line) for line in lines] == [False, True, True, False, True, False]
    assert lines[1]['error'] == "an earlier row has the same id, 'a': give it another"


def test_marks_as_data_are_those_of_their_text(engine):
    fields = {'shape': 'ellipse', 'box': [0.1, 0.2, 0.5, 0.6], 'color': '#102030', 'units': 'fractions'}
    marks = [
        {**fields, 'alpha': 200, 'width': 2.5, 'image': 2},
        {'shape': 'mask contour', 'polygon': [[1, 1, 9, 1, 9, 9], [2, 2, 5, 2, 5, 5]], 'color': 'lime'},
        'arrow:4,5:blue',
    ]
    [*answers(engine, [{'prompt': 'x', 'images': ['a', 'b'], 'marks': marks}])]
    second, contour, arrow = engine.asked[0].marks
    assert second == '2/ellipse:0.1,0.2,0.5,0.6:#102030:alpha=200:width=2.5:units=relative'
    assert contour == Mark('mask contour', polygon=[[1, 1, 9, 1, 9, 9], [2, 2, 5, 2, 5, 5]], color='lime')
    assert arrow == Mark('arrow', point=(4, 5), color='blue')


def test_settings_of_a_row_change_those_of_all(engine):
    settings = GenerationSettings(max_new_tokens=5, temperature=0.5, seed=3)
    rows = [
        {'id': 'a', 'prompt': 'x', 'settings': {'max_new_tokens': 9, 'top_k': None}},
        {'id': 'b', 'prompt': 'x', 'settings': {'seed': 4}},
        {'id': 'c', 'prompt': 'x', 'settings': {'temperature': 0}},
        {'id': 'd', 'prompt': 'x', 'settings': {'logit_bias': {'7': 3}}},
    ]
    [*answers(engine, rows, settings=settings)]
    asked = {question.id: question.settings for question in engine.asked}
    assert [asked[id].max_new_tokens for id in 'abcd'] == [9, 5, 5, 5]
    assert asked['b'].seed == 4
    assert asked['c'].seed == 3
    assert len({asked[id].seed for id in 'abd'}) == 3
    assert asked['d'].logit_bias == ((7, 3.0),)
    again = FakeEngine()
    with again:
        [*answers(again, rows[::-1], settings=settings)]
    assert {question.id: question.settings for question in again.asked} == asked


def test_questions_of_vip_bench_are_those_of_eval(engine, tmp_path):
    from vipllava_jax.evaluation.cases import VIP_BENCH, read_cases

    Image.new('RGB', (9, 9)).save(tmp_path / 'a.png')
    rows = [
        {'question_id': 'v1_0', 'image': 'a.png', 'text': 'What <image> is {mark}?', 'category': 'rec'},
        {'question_id': 2, 'image': 'a.png', 'text': 'Who?'},
    ]
    lines = [*answers(engine, rows, images=tmp_path, ordered=True)]
    assert [line['id'] for line in lines] == ['v1_0', '2']
    assert lines[0]['row'] == {'category': 'rec'}
    for question, case in zip(engine.asked, read_cases(rows, tmp_path).cases, strict=True):
        assert case.task is VIP_BENCH
        assert question.prompt == [*case.turns]
        assert question.images == case.images
        assert question.fit == VIP_BENCH.fit
        assert question.settings.max_new_tokens == VIP_BENCH.max_new_tokens
    [*answers(engine, rows[:1], images=tmp_path, settings=GenerationSettings(max_new_tokens=5))]
    assert engine.asked[-1].settings.max_new_tokens == 5


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'model': 3}, TypeError, 'expected a Model'),
        ({'rows': 'rows.jsonl'}, TypeError, 'expected dicts'),
        ({'rows': {'prompt': 'x'}}, TypeError, 'expected dicts'),
        ({'images': 'none'}, FileNotFoundError, "no folder of pictures 'none'"),
        ({'settings': {'temperature': 1}}, TypeError, 'must be a GenerationSettings'),
        ({'settings': GenerationSettings(temperature=[1, 2])}, ValueError, 'give one number, for all rows'),
    ],
)
def test_invalid_arguments_are_errors_at_once(engine, arguments, error, message):
    given = {'model': engine, 'rows': [], **arguments}
    with pytest.raises(error, match=message):
        answers(given.pop('model'), given.pop('rows'), **given)


def test_pictures_in_memory_are_bounded(engine, monkeypatch):
    monkeypatch.setattr(many, 'MAX_AHEAD_BYTES', 1000)
    reply = engine.submit
    slow = []
    engine.submit = lambda question: slow.append(question) or reply(question)
    rows = ({'prompt': f'{n}', 'image': b'x' * 400} for n in range(50))
    lines = answers(engine, rows)
    next(lines)
    assert len(slow) <= 6
    assert len([*lines]) == 49
