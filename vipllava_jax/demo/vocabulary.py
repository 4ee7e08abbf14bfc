"""Trains the demo model's tokenizer on the text of its world, and writes its processor files."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from vipllava_jax.demo.examples import example
from vipllava_jax.files import write_json
from vipllava_jax.inputs.prompts import IMAGE_TOKEN, VICUNA_SYSTEM, Turn, render

SIZE = 768
SPECIAL = ('<unk>', '<s>', '</s>')
BYTES = tuple(f'<0x{byte:02X}>' for byte in range(256))
ADDED_TOKENS = (IMAGE_TOKEN, '<pad>', VICUNA_SYSTEM)  # the system prompt is a single token
# The Jinja form of `prompts.TEMPLATES['vipllava']`; a message's content is a text or a list of parts.
CHAT_TEMPLATE = (
    '{% macro text(content) %}{% if content is string %}{{ content }}{% else %}'
    "{% for part in content if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    '{% endif %}{% endmacro %}'
    "{% if messages[0]['role'] != 'system' %}" + VICUNA_SYSTEM + ' {% endif %}'
    '{% for message in messages %}'
    "{% if message['role'] == 'system' %}{{ text(message['content']) }} "
    "{% elif message['role'] == 'user' %}USER: {{ text(message['content']) }} "
    "{% else %}ASSISTANT: {{ text(message['content']) }}</s>{% endif %}"
    '{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}'
)


def world_text(count: int = 4000) -> Iterable[str]:
    """The rendered conversations of `count` examples, without special tokens."""
    for number in range(count):
        drawn = example(number)
        text = render('vipllava', [*drawn.turns, Turn('user', 'What?')], int(drawn.scene is not None))
        yield text.replace(IMAGE_TOKEN, '').replace(VICUNA_SYSTEM, '').replace('</s>', '\n')


def make_tokenizer(texts: Iterable[str] | None = None) -> Tokenizer:
    """A byte-pair tokenizer like Llama's: ids begin with <s>, and unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split('\n', 'isolated'),
            pre_tokenizers.Metaspace(prepend_scheme='first'),
            pre_tokenizers.Punctuation('isolated'),
        ]
    )
    learned = SIZE - len(SPECIAL) - len(BYTES) - len(ADDED_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        show_progress=False,
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )
    tokenizer.train_from_iterator(world_text() if texts is None else texts, trainer)
    model = json.loads(tokenizer.to_str())['model']
    pieces = [piece for piece in sorted(model['vocab'], key=model['vocab'].get) if piece != '\n']
    vocabulary = {piece: i for i, piece in enumerate((*SPECIAL, *BYTES, *pieces))}
    merges = [tuple(pair) for pair in model['merges']]
    tokenizer.model = models.BPE(vocabulary, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in (*SPECIAL, *ADDED_TOKENS[:2])]
    )
    tokenizer.add_tokens([AddedToken(VICUNA_SYSTEM, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
    )
    return tokenizer


TOKENIZER_CONFIG = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'processor_class': 'LlavaProcessor',
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'pad_token': '<pad>',
    'padding_side': 'left',
    'clean_up_tokenization_spaces': False,
    'model_max_length': 1024,
}


def write_processor(folder: Path, side: int, patch: int) -> None:
    """Writes the tokenizer's and processor's files in Hugging Face's format to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / 'tokenizer.json'))
    write_json(folder / 'tokenizer_config.json', TOKENIZER_CONFIG)
    write_json(
        folder / 'preprocessor_config.json',
        {
            'image_processor_type': 'CLIPImageProcessor',
            'processor_class': 'LlavaProcessor',
            'size': {'shortest_edge': side},
            'crop_size': {'height': side, 'width': side},
            'resample': 3,
            'rescale_factor': 1 / 255,
            'image_mean': [0.48145466, 0.4578275, 0.40821073],
            'image_std': [0.26862954, 0.26130258, 0.27577711],
            **dict.fromkeys(
                ('do_convert_rgb', 'do_resize', 'do_center_crop', 'do_rescale', 'do_normalize'), True
            ),
        },
    )
    write_json(
        folder / 'processor_config.json',
        {
            'processor_class': 'LlavaProcessor',
            'image_token': IMAGE_TOKEN,
            'patch_size': patch,
            'num_additional_image_tokens': 1,
            'vision_feature_select_strategy': 'default',
        },
    )
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE, encoding='utf-8')
