"""The log-probabilities of tokens as JSON."""

import json

import numpy as np

from tests.makers import tiny_tokenizer
from vipllava_jax.answering.token_reports import token_reports
from vipllava_jax.generation.result import GeneratedAnswer
from vipllava_jax.inputs.tokenizer import Tokenizer


class Processor:
    tokenizer = Tokenizer(tiny_tokenizer(), {})


def ids(*tokens):
    return [Processor.tokenizer.token_to_id(token) for token in tokens]


def test_each_token_has_its_text_and_log_probability():
    tokens = np.int32(ids('▁the', '<0xC3>', '</s>'))
    answer = GeneratedAnswer(tokens, True, 'stop', np.float32([-0.25, -1.1234567, np.nan]))
    reports = token_reports(Processor, answer)
    assert reports == [
        {'token': ' the', 'id': tokens[0], 'logprob': -0.25},
        {'token': '\N{REPLACEMENT CHARACTER}', 'bytes': [0xC3], 'id': tokens[1], 'logprob': -1.123457},
        {'token': '</s>', 'id': tokens[2], 'logprob': None},
    ]
    assert json.loads(json.dumps(reports)) == reports


def test_the_most_likely_tokens_are_listed_with_each_token():
    tokens, top = np.int32(ids('a', 'b')), np.int32([ids('a', '<0xA9>'), ids('<s>', 'b')])
    logprobs = np.float32([[-0.25, -2], [-0.0, -1]])
    reports = token_reports(
        Processor, GeneratedAnswer(tokens, True, 'stop', logprobs[[0, 1], [0, 1]], top, logprobs)
    )
    assert [report['logprob'] for report in reports] == [-0.25, -1]
    assert reports[0]['top'] == [
        {'token': 'a', 'id': tokens[0], 'logprob': -0.25},
        {'token': '\N{REPLACEMENT CHARACTER}', 'bytes': [0xA9], 'id': top[0, 1], 'logprob': -2},
    ]
    assert [part['token'] for part in reports[1]['top']] == ['<s>', 'b']
    assert str(reports[1]['top'][0]['logprob']) == '0.0'
