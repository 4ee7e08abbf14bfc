import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.inputs.prompts import TEMPLATE_NAMES, TEMPLATES, ChatTemplate, Turn, render, stop_strings

SYSTEM = (
    'A chat between a curious human and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
HELPER = (
    'You are a helpful language and vision assistant. '
    'You are able to understand the visual content that the user provides, '
    'and assist the user with a variety of tasks using natural language.'
)
ASK = [Turn('user', 'What is this?')]
CHAT = [*ASK, Turn('assistant', 'A cat.'), Turn('user', 'Sure?')]
# The template of the checkpoints on the Hub: images before texts, nothing between turns.
HUB = ChatTemplate("""\
{% for m in messages %}
{% if m['role'] != 'system' %}{{ '###Human: ' if m['role'] == 'user' else '###Assistant: ' }}{% endif %}
{% for part in m['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}
{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}
{% endfor %}
{% if add_generation_prompt %}{{ '###Assistant:' }}{% endif %}""")
PLAIN = ChatTemplate(
    '{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}'
    '{% if add_generation_prompt %}>{% endif %}',
    {'bos_token': '<s>'},
)


@pytest.mark.parametrize(
    ('name', 'turns', 'expected'),
    [
        ('vipllava', ASK, f'{SYSTEM} USER: <image>\nWhat is this? ASSISTANT:'),
        (
            'vipllava',
            CHAT,
            f'{SYSTEM} USER: <image>\nWhat is this? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:',
        ),
        (
            'vipllava',
            [Turn('system', 'Be brief.'), *ASK],
            'Be brief. USER: <image>\nWhat is this? ASSISTANT:',
        ),
        ('vipllava', CHAT[:2], f'{SYSTEM} USER: <image>\nWhat is this? ASSISTANT: A cat.</s>'),
        ('hub', ASK, f'{SYSTEM}###Human: <image>\nWhat is this?###Assistant:'),
        (
            'hub',
            [Turn('system', 'SYS.'), *CHAT],
            'SYS.###Human: <image>\nWhat is this?###Assistant: A cat.###Human: Sure?###Assistant:',
        ),
        ('plain', [Turn('user', ''), Turn('assistant', 'a cat')], '<image>a cat\n'),
        ('plain', ASK, '<image>What is this?'),
        (
            'llama3',
            ASK,
            f'<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{HELPER}<|eot_id|>'
            '<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is this?<|eot_id|>'
            '<|start_header_id|>assistant<|end_header_id|>\n\n',
        ),
        (
            'phi3',
            ASK,
            f'<|system|>\n{HELPER}<|end|>\n<|user|>\n<image>\nWhat is this?<|end|>\n<|assistant|>\n',
        ),
    ],
)
def test_templates_equal_those_of_training(name, turns, expected):
    assert render(name, turns, 1) == expected


def test_the_checkpoints_template_can_be_selected():
    turns = [Turn('system', 'SYS.'), *CHAT]
    assert render('checkpoint', turns, 1, HUB) == render('hub', turns, 1)
    assert render('checkpoint', ASK, 2, PLAIN) == '<s>[user]<image>\n<image>\nWhat is this?>'
    assert stop_strings('checkpoint', HUB) == ('###',)
    assert stop_strings('checkpoint', PLAIN) == stop_strings('vipllava') == ()
    assert stop_strings('llama3') == ('<|eot_id|>',)


@given(
    name=st.sampled_from(TEMPLATE_NAMES),
    count=st.integers(0, 3),
    text=st.text(st.characters(exclude_characters='<', codec='utf-8'), max_size=20),
    chat=st.sampled_from([HUB, PLAIN]),
)
def test_every_image_has_a_placeholder(name, count, text, chat):
    rendered = render(name, [Turn('user', text)], count, chat)
    assert rendered.count('<image>') == count
    assert text.strip() in rendered
    placed = 'Compare <image> with <image>, please.'
    assert placed in render(name, [Turn('user', placed), *CHAT[1:]], 2, chat)


def test_braces_in_a_text_are_kept():
    assert '{x} {{ y }} {% z %}' in render('vipllava', [Turn('user', '{x} {{ y }} {% z %}')], 0)
    assert '{{ y }}' in render('checkpoint', [Turn('user', '{{ y }}')], 0, HUB)


@pytest.mark.parametrize(
    ('name', 'turns', 'images', 'message'),
    [
        (
            'vicuna',
            ASK,
            0,
            "unknown template 'vicuna': choose vipllava, hub, plain, llama3, phi3, checkpoint",
        ),
        ('checkpoint', ASK, 0, 'this checkpoint has no chat template: choose vipllava'),
        (
            'vipllava',
            [Turn('user', '<image> and <image>')],
            1,
            'the text has <image> 2 times for 1 image.s.: write it once',
        ),
        ('vipllava', [Turn('user', '<image>')], 2, 'the text has <image> 1 times for 2 image.s.:'),
        ('vipllava', [Turn('user', '<image>')], 0, 'the text has <image> 1 times for 0 image.s.:'),
        ('vipllava', [Turn('bot', 'hi')], 0, "unknown role 'bot': choose system, user, assistant"),
        ('vipllava', [Turn('assistant', 'hi')], 0, 'expected a turn of the user.*found assistant'),
        ('vipllava', [*ASK, Turn('system', 'hi')], 0, 'only at the start; found user, system'),
        ('vipllava', [], 0, 'found no turns'),
    ],
)
def test_errors_about_prompts_say_what_to_do(name, turns, images, message):
    with pytest.raises(ValueError, match=message):
        render(name, turns, images)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('{% for %}', 'chat template fails'),
        (
            "{{ raise_exception('roles must alternate') }}",
            'fails .roles must alternate.: choose another template, vipllava',
        ),
        ("{{ ''.__class__.__mro__ }}", 'fails .*unsafe'),
        ('{{ messages.append(1) }}', 'fails'),
        ("{{ 'a' * 100000000 }}", 'fails .* is too large'),
        ('{{ 9 ** 999999999 }}', 'fails .* is too large'),
        ('{% for i in range(99999) %}{{ i * 1000 }} {{ messages }}{% endfor %}', 'writes more than'),
        ('{% for i in range(999999999) %}{% endfor %}', 'fails'),
        ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'fails .*recursion'),
        ('{{ 1 / 0 }}', 'fails .*zero'),
        ('x' * 2_000_000, 'longer than'),
        ('nothing', 'the template checkpoint wrote <image> 0 times for 1 image.s.: choose another'),
    ],
)
def test_a_malicious_template_is_harmless(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        render('checkpoint', ASK, 1, ChatTemplate(source))
    assert '\n' not in str(caught.value)


def test_every_template_name_has_a_template():
    assert set(TEMPLATE_NAMES) == {*TEMPLATES, 'checkpoint'}
