"""Chat templates are found where transformers finds them, and give the same output."""

import json
import os
from pathlib import Path

import pytest
from jinja2 import TemplateError

from tests.makers import write_processor_files
from vipllava_jax.inputs import chat_templates
from vipllava_jax.inputs.chat_templates import ChatTemplate
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import Turn, render, rendering_problem
from vipllava_jax.inputs.rendering import RenderingError
from vipllava_jax.messages import CheckpointError

LLAVA = (  # as llava-hf/llava-1.5-7b-hf has it
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}"
    "{% endif %}{# Render all images first #}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}"
    "{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + "
    "message['content'][0]['text'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + "
    "message['content'][-1]['text'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}
Today Date: {{ date_string }}
{% for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {%- for part in message.content %}{{ part.text | default('<image>') | trim }}{% endfor %}
{%- endfor %}
"""
SMALL = (
    '{% generation %}a{% endgeneration %}|{%- generation -%} b {%- endgeneration -%}',
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% break %}"
    '{% endfor %}',
    "{{ {'b': '<é>&\"\\'', 'a': [1, none, true, 2.5]} | tojson }}",
    "{{ {'b': 'é', 'a': [1]} | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
    "{{ {'b': 'é', 'a': [1]} | tojson(separators=(',', ':')) }}",
    '{{ tools }} {{ documents }} {{ tools is defined }} {{ documents is none }} {{ other is defined }}',
    '{% if tools %}yes{% else %}no{% endif %}{% if documents is not none %}docs{% endif %}',
    'a\n  {% if true %}\n    b\n  {% endif %}\n{# comment #}\nc\n',
    '{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}'
    '{{ ns.n }}',
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('y') }}{{ dict(a=1)['a'] }}",
    "{{ dict.fromkeys('ab', 3) | tojson }}",
    '{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token }}{{ image_token }}',
    "{{ strftime_now('%Y') }}{{ strftime_now(format='%d') }}",
    "{{ messages[0]['content'] | tojson }}{{ messages | length }}{{ add_generation_prompt }}",
    "{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ [1] * 2 }}{{ 7 // 2 }}{{ 2 ** -1 }}{{ 1.5 * 2 }}{{ '<b>' }}",
    "{%- set x = 'q' -%}{{ x ~ x | upper }}{{ 'a,b'.split(',') | join('-') }}{{ 'x'.startswith('x') }}",
    "{{ messages | map(attribute='role') | list }}",
    "{{ messages | selectattr('role', 'in', ['user']) | list | length }}",
    '{% filter upper %}abc{% endfilter %}',
)
CONVERSATION = [
    {'role': 'system', 'content': [{'type': 'text', 'text': 'Be brief.'}]},
    {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Was ist "das" <da>? 😀'}]},
    {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Eine Katze.'}]},
    {'role': 'user', 'content': [{'type': 'text', 'text': 'Sicher?'}]},
]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_processor_files(tmp_path)
    return tmp_path


def peer(folder: Path):
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    pictures = CLIPImageProcessorPil.from_pretrained(folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(folder)
    chat = LlavaProcessor.get_processor_dict(folder)[0].get('chat_template')
    return LlavaProcessor(pictures, tokens, patch_size=14, chat_template=chat)


@pytest.mark.parity
@pytest.mark.parametrize('source', [LLAVA, PHI, LLAMA_3, *SMALL], ids=range(3 + len(SMALL)))
def test_templates_render_as_in_transformers(folder, source):
    (folder / 'chat_template.jinja').write_text(source)
    theirs, ours = peer(folder), Processor.load(folder).chat_template
    for turns, cue in [(CONVERSATION, True), (CONVERSATION, False), (CONVERSATION[:3], False)]:
        expected = theirs.apply_chat_template(turns, add_generation_prompt=cue, tokenize=False)
        assert chat_templates.render_chat(ours, turns, cue) == expected


@pytest.mark.parity
@pytest.mark.parametrize(
    'source',
    [
        '{% for %}',
        '{{ 1 / 0 }}',
        "{{ raise_exception('no') }}",
        "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
        "{% include 'x' %}",
        '{{ messages.append(1) }}',
        '{% set n = namespace(_x=1) %}',
        '{{ undefined.attribute }}',
        '{% generation %}',
    ],
)
def test_templates_fail_where_they_fail_in_transformers(folder, source):
    (folder / 'chat_template.jinja').write_text(source)
    with pytest.raises((TemplateError, ArithmeticError, TypeError)):
        peer(folder).apply_chat_template(CONVERSATION, tokenize=False)
    with pytest.raises(RenderingError):
        chat_templates.render_chat(Processor.load(folder).chat_template, CONVERSATION, True)


def test_published_templates_render_a_question():
    turns = [
        Turn('system', 'SYS.'),
        Turn('user', 'What?'),
        Turn('assistant', 'A cat.'),
        Turn('user', 'Sure?'),
    ]
    chat = ChatTemplate(LLAVA)
    expected = 'SYS. USER: <image>\nWhat? ASSISTANT: A cat. USER: Sure? ASSISTANT:'
    assert render('checkpoint', turns, 1, chat) == expected
    assert rendering_problem(chat) is None
    assert 'wrote <image> 0 times' in rendering_problem(ChatTemplate('hello'))
    assert 'division by zero' in rendering_problem(ChatTemplate('{{ 1 / 0 }}'))


PLACES = {
    'processor_config.json': lambda folder, text: edit(folder / 'processor_config.json', chat_template=text),
    'chat_template.json': lambda folder, text: (folder / 'chat_template.json').write_text(
        json.dumps({'chat_template': text})
    ),
    'chat_template.jinja': lambda folder, text: (folder / 'chat_template.jinja').write_text(text),
    'tokenizer_config.json': lambda folder, text: edit(folder / 'tokenizer_config.json', chat_template=text),
}


def edit(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parity
@pytest.mark.parametrize('first', range(3))
def test_template_files_have_the_precedence_of_transformers(folder, first):
    """transformers ignores the tokenizer's template for a processor; here it is the last choice."""
    for name in [*PLACES][first:]:
        PLACES[name](folder, f'that of {name}')
    assert Processor.load(folder).chat_template.source == peer(folder).chat_template


def test_template_files_have_a_fixed_precedence(folder):
    assert Processor.load(folder).chat_template is None
    for name in reversed(PLACES):
        PLACES[name](folder, name)
        assert Processor.load(folder).chat_template.source == name
    for name in [*PLACES][:3]:
        PLACES[name](folder, '')  # as if it were not there
    assert Processor.load(folder).chat_template.source == 'tokenizer_config.json'


@pytest.mark.parametrize('name', ['tokenizer_config.json', 'chat_template.json'])
def test_the_template_named_default_is_used(folder, name):
    listed = [{'name': 'tool_use', 'template': 'tools'}, {'name': 'default', 'template': 'plain'}]
    for given in (listed, {entry['name']: entry['template'] for entry in listed}):
        PLACES[name](folder, given)
        assert Processor.load(folder).chat_template.source == 'plain'
    PLACES[name](folder, listed[:1])
    assert Processor.load(folder).chat_template is None


@pytest.mark.parametrize('name', ['processor_config.json', 'tokenizer_config.json', 'chat_template.json'])
@pytest.mark.parametrize(
    'value',
    [7, True, ['x'], [7], [{'name': 7}], {'default': 7}, [{'name': 'default', 'template': []}], 1e400],
)
def test_invalid_templates_are_named(folder, name, value):
    PLACES[name](folder, value)
    with pytest.raises(CheckpointError, match=f'{name}: chat_template: expected a '):
        Processor.load(folder)


def test_a_template_file_is_regular_and_text(folder):
    path = folder / 'chat_template.jinja'
    path.write_bytes(b'ab\xff')
    with pytest.raises(CheckpointError, match='chat_template.jinja: not UTF-8 .* at byte 2'):
        Processor.load(folder)
    path.write_bytes('{{ messages }}'.encode('utf-16'))
    with pytest.raises(CheckpointError, match='chat_template.jinja: is UTF-16, expected UTF-8'):
        Processor.load(folder)
    path.write_bytes(b'\xef\xbb\xbfhi')
    assert Processor.load(folder).chat_template.source == 'hi'
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match='chat_template.jinja: expected a regular file, found a FIFO'):
        Processor.load(folder)


def test_special_tokens_are_those_of_the_files(folder):
    edit(folder / 'tokenizer_config.json', bos_token={'content': '<s>'}, image_token='<image>')
    (folder / 'chat_template.jinja').write_text('{{ bos_token }}{{ image_token }}{{ cls_token }}')
    assert (
        chat_templates.render_chat(Processor.load(folder).chat_template, CONVERSATION, True) == '<s><image>'
    )
