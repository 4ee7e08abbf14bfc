import pytest

from tests.protocol.bodies import HELLO, image, tokens, user
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.tokenizing import tokenize


def test_a_prompt_is_encoded_as_it_is(served):
    processor = served.model.processor
    ids = processor.tokenizer.encode('the cat')
    assert tokenize(tokens(prompt='the cat'), served) == {
        'count': len(ids),
        'max_model_len': 1024,
        'tokens': ids,
    }
    bare = tokenize(tokens(prompt='the cat', add_special_tokens=False), served)
    assert [processor.tokenizer.bos, *bare['tokens']] == ids
    assert tokenize(tokens(prompt=''), served)['count'] <= 1


def test_messages_are_a_prompt_with_its_pictures(served):
    processor = served.model.processor
    found = tokenize(tokens(messages=HELLO, model='vip', template='hub'), served)
    assert found['tokens'] == processor.encode([Turn('user', 'Hello?')], 0, 'hub')
    for url in (None, 'https://a.org/not-fetched.png'):
        part = image() if url is None else image(url)
        found = tokenize(tokens(messages=[user(part, 'What?')]), served)
        assert found['tokens'] == processor.encode([Turn('user', 'What?')], 1)
        assert found['tokens'].count(processor.image_id) == processor.patches


@pytest.mark.parametrize(
    ('fields', 'status', 'param'),
    [
        ({}, 400, 'prompt'),
        ({'prompt': 'x', 'messages': HELLO}, 400, 'prompt'),
        ({'prompt': 'x', 'model': 'y'}, 404, 'model'),
        ({'prompt': 'x' * 300_000}, 400, 'prompt'),
        ({'messages': HELLO, 'template': 'x'}, 400, 'template'),
    ],
)
def test_refused(served, fields, status, param):
    with pytest.raises(ApiError) as caught:
        tokenize(tokens(**fields), served)
    assert (caught.value.status, caught.value.param) == (status, param)
