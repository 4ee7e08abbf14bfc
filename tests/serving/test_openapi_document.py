"""Requests that are generated from /openapi.json, and whether the responses are as it says."""

import random
from collections import Counter
from typing import Any

import hypothesis
import pytest
import schemathesis
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.demo import HEADERS, NAME, data_uri, encoded

MAX_TOKENS = 3
REQUIRED = ('model', 'messages', 'prompt', 'image', 'regions', 'question')
PICTURE = data_uri(encoded(Image.new('RGB', (20, 30), 'teal')))
CHECKS = [
    *(not_a_server_error, status_code_conformance),
    *(content_type_conformance, response_schema_conformance),
]


@pytest.fixture(scope='session')
def document(demo) -> Any:
    return schemathesis.openapi.from_url(f'http://127.0.0.1:{demo.port}/openapi.json', headers=HEADERS)


def make_answerable(case: schemathesis.Case) -> None:
    """Changes most requests, whose fields are all random, into ones that get further and are short."""
    body = case.body
    if not isinstance(body, dict):
        return
    rng = random.Random(repr(body))
    optional = [name for name in body if name not in REQUIRED]
    for name in rng.sample(optional, max(0, len(optional) - rng.randrange(4))):
        del body[name]
    if isinstance(body.get('model'), str) and rng.random() < 0.9:
        body['model'] = NAME
    if isinstance(body.get('question'), str):
        body['question'] += '{mark}'
    if isinstance(body.get('image'), str) and rng.random() < 0.9:
        body['image'] = PICTURE
    if isinstance(body.get('regions'), list) and rng.random() < 0.5:
        body['regions'] = [[2, 2, 12, 12], 'point:5,5:lime'][: len(body['regions'])]
    for message in body['messages'] if isinstance(body.get('messages'), list) else ():
        improve_message(message, rng)
    if 'max_completion_tokens' not in body and isinstance(body.get('max_tokens', 1), int):
        body['max_tokens'] = MAX_TOKENS


def improve_message(message: Any, rng: random.Random) -> None:
    """Makes a message one of the user, most of whose pictures can be read, and have at most one mark."""
    if not isinstance(message, dict):
        return
    if rng.random() < 0.8:
        message['role'] = 'user'
    for part in message['content'] if isinstance(message.get('content'), list) else ():
        if isinstance(part, dict) and part.get('type') == 'image_url' and rng.random() < 0.9:
            part['image_url'] = {'url': PICTURE}
            part['visual_prompts'] = rng.choice([[], ['point:5,5:red'], part.get('visual_prompts')])


def check_operations(document: Any, examples: int) -> Counter[int]:
    """Sends up to this many valid and invalid requests to each operation -> how often each status came."""
    statuses: Counter[int] = Counter()
    for found in document.get_all_operations():
        operation = found.ok()
        check_operation(operation, schemathesis.GenerationMode.POSITIVE, examples, statuses)
        if operation.method == 'post':
            check_operation(operation, schemathesis.GenerationMode.NEGATIVE, examples, statuses)
    return statuses


def check_operation(
    operation: Any, mode: schemathesis.GenerationMode, examples: int, statuses: Counter[int]
) -> None:
    """Sends requests to one operation; AssertionError if a response is not as the document says."""

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[*hypothesis.HealthCheck],
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        if mode.is_positive:
            make_answerable(case)
        response = case.call(headers=HEADERS, timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    send()


@pytest.mark.slow
def test_responses_are_as_the_document_says(demo, document, caplog):
    statuses = check_operations(document, 25)
    assert statuses.total() >= 200
    assert statuses[200] >= 20
    assert not [record for record in caplog.records if record.exc_info]
    demo.wait(demo.is_idle)


@pytest.mark.by_hand
def test_many_responses_are_as_the_document_says(demo, document, caplog):
    assert check_operations(document, 250).total() >= 2000
    assert not [record for record in caplog.records if record.exc_info]
    demo.wait(demo.is_idle)
