"""The settings of `vipllava ask`: checked before anything loads, and the same as those of the library."""

import dataclasses
import json

import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax import loading
from vipllava_jax.answering import beam_stream
from vipllava_jax.cli.ask import GROUPS, ask
from vipllava_jax.cli.generation_options import OPTIONS, other_settings
from vipllava_jax.messages import safe_answer

SAMPLED = ('--max-new-tokens', 40, '--temperature', 2, '--seed', 1)  # an answer without an end token


def test_each_setting_can_be_given_once():
    names = {field.name for field in dataclasses.fields(vj.GenerationSettings)}
    assert {*OPTIONS, *other_settings(), 'processors'} == names
    assert not {*OPTIONS} & {*other_settings()}
    declared = {option.name: option.opts[0] for option in ask.params}
    assert {name: declared[name] for name in OPTIONS} == OPTIONS


def test_each_option_is_in_one_group_of_the_help(vipllava):
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(option.name for option in ask.params if option.name != 'question')
    text = vipllava('ask', '--help').out
    assert all(text.count(f'  {option.opts[0]} ') == 1 for option in ask.params if option.name in listed)
    assert [text.index(f'\n{title}:\n') for title in GROUPS] == sorted(
        text.index(f'\n{title}:\n') for title in GROUPS
    )


def test_settings_that_only_filter_samples_are_named_if_nothing_is_sampled(vipllava, folder):
    command = ('ask', '--model', folder, '--max-new-tokens', 1)
    filters = ('--top-p', 0.5, '--top-k', 0, '--set', 'eta_cutoff=0.1')
    note = 'vipllava: without --temperature, there is no effect of --top-p, eta_cutoff\n'
    assert vipllava(*command, *filters, 'hi').err.endswith(note)
    assert 'no effect' not in vipllava(*command, '--seed', 1, 'hi').err
    assert 'no effect' not in vipllava(*command, *filters, '--temperature', 1, 'hi').err


def test_stop_strings_can_be_given(vipllava, folder):
    command = ('ask', '--model', folder, *SAMPLED)
    full = vipllava(*command, 'hi').out.removesuffix('\n')
    stop = full[5:7]
    cut = full[: full.find(stop)]
    assert vipllava(*command, '--stop', 'never', '--stop', stop, 'hi').out == cut.rstrip() + '\n'
    assert vipllava(*command, '--stop', stop, '--set', 'keep_stop=true', 'hi').out == cut + stop + '\n'


def test_several_answers_follow_their_headers(vipllava, folder):
    command = ('ask', '--model', folder, '--max-new-tokens', 8, '--temperature', 2, '--seed', 1)
    alone = vipllava(*command, 'hi')
    report = json.loads(vipllava(*command, '--n', 3, '--json', 'hi').out)
    texts = [safe_answer(answer['answer']) for answer in report['answers']]
    assert texts[0] == alone.out.removesuffix('\n')
    assert len({*texts}) == 3
    printed = ''.join(f'--- answer {n} of 3 ---\n{text}\n' for n, text in enumerate(texts, 1))
    assert vipllava(*command, '--n', 3, 'hi').out == printed
    assert report['settings'] == {'num_return_sequences': 3}
    assert report['new_tokens'] == sum(answer['new_tokens'] for answer in report['answers'])
    assert {answer['finish_reason'] for answer in report['answers']} <= {'length', 'stop'}


@pytest.mark.slow
def test_the_other_settings_are_those_of_the_library(vipllava, folder):
    model = vj.load(folder)
    settings = vj.GenerationSettings(
        max_new_tokens=8,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        sequence_bias=[[[40, 41], -2.0]],
        logit_bias={7: 3.0},
        early_stopping='never',
        logprobs=2,
    )
    ran = vipllava(
        *('ask', '--model', folder, '--max-new-tokens', 8, '--repetition-penalty', 1.5, '--json'),
        *('--set', 'no_repeat_ngram_size=2', '--set', 'sequence_bias=[[[40, 41], -2]]'),
        *('--set', 'logit_bias={"7": 3}', '--set', 'early_stopping=never', '--logprobs', 2, 'hi'),
    )
    report = json.loads(ran.out)
    out = vj.generate(model.params, model.processor('hi'), cfg=model.cfg, settings=settings)
    assert report['answer'] == model.processor.decode(out)[0]
    assert [token['id'] for token in report['logprobs']] == out.tokens[0].tolist()
    assert [[top['id'] for top in token['top']] for token in report['logprobs']] == out.top_ids[0].tolist()
    assert report['answer'] != vipllava('ask', '--model', folder, '--max-new-tokens', 8, 'hi').out.strip()
    assert report['settings'] == {
        'repetition_penalty': 1.5,
        'no_repeat_ngram_size': 2,
        'sequence_bias': [[[40, 41], -2]],
        'logit_bias': {'7': 3},
        'early_stopping': 'never',
        'logprobs': 2,
    }


def test_beams_are_printed_at_the_end(vipllava, folder, monkeypatch):
    def search(params, batch, *, cfg, settings, processor, prefix):
        alone = dataclasses.replace(settings, num_beams=1, num_return_sequences=1)
        found = vj.generate(params, batch, cfg=cfg, settings=alone)
        two = {name: np.repeat(getattr(found, name), 2, axis=0) for name in ('tokens', 'lengths', 'finished')}
        reasons = found.finish_reasons * 2
        return dataclasses.replace(
            found, **two, finish_reasons=reasons, sequence_scores=np.float32([-1.5, -2])
        )

    monkeypatch.setattr(beam_stream, 'generate', search)
    command = ('ask', '--model', folder, '--max-new-tokens', 8)
    report = json.loads(vipllava(*command, '--beams', 4, '--n', 2, '--json', 'hi').out)
    text = vipllava(*command, 'hi').out.removesuffix('\n')
    assert [answer['answer'] for answer in report['answers']] == [text, text]
    assert [answer['sequence_score'] for answer in report['answers']] == [-1.5, -2]
    assert report['settings'] == {'num_return_sequences': 2, 'num_beams': 4}
    assert (report['new_tokens'], report['tokens_per_second']) == (16, None)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--min-p', '1.5', 'q'], '--min-p'),
        (['--repetition-penalty', '0', 'q'], '--repetition-penalty'),
        (['--repetition-penalty', '1e40', 'q'], 'repetition_penalty is 1e+40'),
        (['--stop', '', 'q'], '--stop'),
        (['--stop', '\udcff', 'q'], 'must be valid Unicode'),
        (['--n', '0', 'q'], '--n'),
        (['--n', '3', 'q'], '--n 3 would give equal answers at --temperature 0: raise it, or use --beams'),
        (['--n', '3', '--beams', '2', 'q'], '--beams 2 gives at most 2 answers, but --n is 3'),
        (['--beams', '2000', 'q'], '--beams'),
        (['--logprobs', '2', 'q'], '--logprobs needs --json'),
        (['--logprobs', '-1', '--json', 'q'], '--logprobs'),
        (['--set', 'typical_p', 'q'], "'typical_p' is not NAME=VALUE, such as typical_p=0.9"),
        (['--set', '', 'q'], '--set'),
        (['--set', '=3', 'q'], "'' is not a setting: they are min_new_tokens"),
        (['--set', 'typicalp=0.9', 'q'], 'typicalp is not a setting: did you mean typical_p?'),
        (['--set', 'top-h=0.9', 'q'], 'top-h is not a setting: did you mean top_h?'),
        (['--set', 'temprature=1', 'q'], 'temprature is not a setting: did you mean --temperature?'),
        (['--set', 'max_tokens=1', 'q'], 'max_tokens is not a setting: --max-new-tokens counts'),
        (['--presence-penalty', '1', 'q'], "--presence-penalty': use --set presence_penalty=VALUE"),
        (['--num-beams=4', 'q'], "--num-beams': use --beams"),
        (['--do-sample', 'q'], "--do-sample': a --temperature above 0 samples"),
        (['--best-of', '3', 'q'], '--beams searches for likely answers, and --n draws several'),
        (['--beam', '4', 'q'], "Did you mean '--beams'?"),
        (['--set', 'logit_bias={3: 1}', 'q'], "logit_bias is '{3: 1}', which is not valid JSON: write it in"),
        (['--set', 'eos=[1', 'q'], "eos is '[1', which is not valid JSON: write it in quotes"),
        (['--set', 'x' * 9999 + '=1', 'q'], 'is not a setting'),
        (['--set', 'processors=[]', 'q'], "'processors' is not a setting"),
        (['--set', 'temperature=1', 'q'], 'temperature has an option of its own: use --temperature'),
        (['--set', 'num_return_sequences=2', 'q'], 'use --n'),
        (['--set', 'guidance_scale=2', 'q'], 'guidance_scale is not a setting: guidance compares'),
        (['--set', 'do_sample=true', 'q'], 'a --temperature above 0 samples'),
        (['--set', 'typical_p=2', 'q'], 'typical_p is 2, but must be above 0 and at most 1'),
        (['--set', 'typical_p=', 'q'], "typical_p is ''"),
        (['--set', 'typical_p=NaN', 'q'], 'typical_p is nan'),
        (['--set', 'typical_p=null', 'q'], 'typical_p is None'),
        (['--set', 'typical_p=[0.9]', 'q'], 'typical_p is [0.9]: give one number, for all answers'),
        (['--set', 'typical_p=' + '9' * 5000, 'q'], "typical_p is '999"),
        (['--set', 'bad_words_ids=' + '[' * 10**5, 'q'], 'not valid JSON: it has too many levels'),
        (['--set', 'bad_words_ids=no', 'q'], "bad_words_ids is 'no'"),
        (['--set', 'keep_stop=yes', 'q'], "keep_stop is 'yes', but must be True or False"),
        (['--set', 'early_stopping=Never', 'q'], "early_stopping is 'Never'"),
        (['--set', 'top_h=1', '--set', 'top_h=1', 'q'], '--set top_h is given twice'),
        (
            ['--set', 'min_new_tokens=9', '--max-new-tokens', '8', 'q'],
            'min_new_tokens is 9, but max_new_tokens',
        ),
    ],
)
def test_an_invalid_setting_is_one_line_before_loading(vipllava, monkeypatch, args, message):
    monkeypatch.setattr(loading, 'locate', None)
    code, out, err = vipllava('ask', *args)
    assert (code, out) == (2, '')
    assert err.startswith('vipllava: ')
    assert err.count('\n') == 1
    assert message in err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--set', 'min_new_tokens=600', 'q'], 'min_new_tokens is 600, but max_new_tokens is 512'),
        (['--set', 'suppress_tokens=[99999]', 'q'], 'suppress_tokens holds the id 99999'),
        (['--logprobs', '99999', '--json', 'q'], 'logprobs is 99999, but the vocabulary has'),
        (['--set', 'exponential_decay_length_penalty=[[1,2],1.1]', 'q'], 'give one number'),
    ],
)
def test_what_does_not_fit_the_model_is_an_error_before_its_weights_are_loaded(
    vipllava, folder, monkeypatch, args, message
):
    monkeypatch.setattr(loading.Source, 'load', None)
    code, out, err = vipllava('ask', '--model', folder, *args)
    assert (code, out) == (2, '')
    assert message in err
    assert 'row 0' not in err
    assert err.count('\n') == 1
