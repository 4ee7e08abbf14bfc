"""Every command refuses a processor that does not belong to the model, before the weights are read."""

import json
import re
import shutil

import pytest

import vipllava_jax as vj
from tests.makers import noise
from vipllava_jax import placement

EXTRA = '<extra>'


@pytest.fixture
def model(folder, tmp_path):
    """A copy of the tiny model, which the tests modify."""
    return shutil.copytree(folder, tmp_path / 'model')


@pytest.fixture
def commands(vipllava, photo, tmp_path, monkeypatch):
    """Runs ask, eval, train and `load`, none of which may read the weights."""
    monkeypatch.setattr(placement, 'place', lambda *args, **kwargs: pytest.fail('weights were read'))
    noise(40, 30).save(tmp_path / 'a.png')

    def run(model, question='Hi'):
        data = tmp_path / 'rows.jsonl'
        data.write_text(json.dumps(row('q-0', question)) + '\n')
        how = ('--recipe', 'lora', '--output', tmp_path / 'out', '--steps', 1, '--workers', 0)
        return {
            'ask': vipllava('ask', '--model', model, '--image', photo, question),
            'eval': vipllava(
                'eval', '--model', model, '--data', data, '--output', tmp_path / 'answers.jsonl'
            ),
            'train': vipllava('train', '--model', model, '--data', data, *how),
        }

    return run


def row(name, question):
    talk = [{'from': 'human', 'value': f'<image>\n{question}'}, {'from': 'gpt', 'value': 'Yes.'}]
    return {'id': name, 'image': 'a.png', 'conversations': talk, 'question': question, 'answer': ['x']}


def edit(path, change):
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def larger(fields):
    fields['size']['shortest_edge'] = fields['crop_size']['height'] = fields['crop_size']['width'] = 56


def moved(fields):
    fields['added_tokens'][-2:] = [
        {**fields['added_tokens'][-1], 'id': 398},
        {**fields['added_tokens'][-2], 'id': 399},
    ]
    vocab = fields['model']['vocab']
    vocab.pop('<image>', None), vocab.pop('<pad>', None)


def extended(fields):
    fields['added_tokens'].append({**fields['added_tokens'][0], 'content': EXTRA, 'id': 400})


SPOILT = {
    'another size': (
        'preprocessor_config.json',
        larger,
        'the processor makes images of 56 pixels .* takes images of 28',
    ),
    'another patch': (
        'processor_config.json',
        lambda fields: fields.update(patch_size=7),
        'in patches of 7 .* 28 in patches of 14',
    ),
    'another image token': ('tokenizer.json', moved, '<image> has the id 399 .* image_token_index is 398'),
    'another padding': (
        'tokenizer_config.json',
        lambda fields: fields.update(
            pad_token=EXTRA, added_tokens_decoder={'400': {'content': EXTRA, 'special': True}}
        ),
        f'the token {EXTRA} has the id 400, but the embedding of the model has 400 rows',
    ),
}


@pytest.mark.parametrize('case', SPOILT)
def test_a_processor_of_another_model_is_refused(model, commands, vipllava, case):
    name, change, message = SPOILT[case]
    edit(model / name, change)
    for verb, ran in commands(model).items():
        assert ran.code == 2, verb
        assert ran.out == ''
        assert len(ran.err.splitlines()) == 1
        assert re.search(message, ran.err), (verb, ran.err)
    with pytest.raises(ValueError, match=message):
        vj.load(model)
    ran = vipllava('info', '--model', model)
    assert ran.code == 0
    assert 'chat template' not in ran.out


def test_a_token_beyond_the_embedding_is_refused_by_name(model, commands):
    edit(model / 'tokenizer.json', extended)
    for verb, ran in commands(model, f'Hi {EXTRA}').items():
        assert ran.code == 2, (verb, ran)
        assert f'the token {EXTRA} has the id 400, but the embedding of the model has 400 rows' in ran.err, (
            verb
        )
        assert ran.out == ''


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        (
            "{% for part in messages[0]['content'] %}{{ part['text'] if part['type'] == 'text' "
            "else '<image>' }}{% endfor %}",
            'yes: --template checkpoint',
        ),
        ('{{ 1 / 0 }}', "not usable: the checkpoint's chat template fails (division by zero)"),
        ('{% nonsense %}', "not usable: the checkpoint's chat template fails (Encountered unknown tag"),
        ('hello', 'not usable: the template checkpoint wrote <image> 0 times for 1 image(s)'),
        (None, 'none'),
    ],
)
def test_info_says_whether_the_chat_template_can_be_used(model, vipllava, source, expected):
    if source:
        (model / 'chat_template.jinja').write_text(source)
    assert expected in json.loads(vipllava('info', '--model', model, '--json').out)['model']['chat template']


def test_a_failing_template_is_one_line(model, vipllava, photo):
    (model / 'chat_template.jinja').write_text("{{ raise_exception('\x1b[2Jno ' * 1000) }}")
    ran = vipllava('ask', '--model', model, '--image', photo, '--template', 'checkpoint', 'Hi')
    assert (ran.code, ran.out) == (2, '')
    assert len(ran.err) < 520
    assert ran.err.rstrip('\n').isprintable()
