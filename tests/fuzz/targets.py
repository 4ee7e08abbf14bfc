"""The targets of the fuzzer: valid files, inputs derived from them, and a reader of an input's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import base, data_readers, readers
from tests.fuzz.commands import commands
from tests.fuzz.inputs import (
    PARTS,
    PATTERNS,
    PLACES,
    SIZES,
    InputsOf,
    binaries,
    chat_templates,
    fixed,
    journal,
    named,
    objects,
    one_of,
    pictures,
    rows,
    safetensors,
    tokenizers,
    with_command,
)
from tests.fuzz.lines import marks, toml_files
from tests.fuzz.nasty import words
from tests.fuzz.pickles import archives

FIELDS = (*words('full  cls_patch  anyres  fp8  llama'), {'quant_method': 'awq'}, {'rope_type': 'linear'})
MESSAGE_VALUES = (
    *words('user  assistant  tool  text  image  image_url  <image>  data:,  file:///etc/passwd  photo.png'),
    *(
        {'type': 'image'},
        'data:image/png;base64,AAAA',
        'data:image/png;base64,' + 'A' * 100_000,
        [{'type': 'image'}] * 300,
    ),
)
REGION_VALUES = (
    *words('photo.png  a/photo.png  0  00000000  oooooooooooo  `  90'),
    *([60, 90], [90, 60], [2**40, 2**40], [5400], [0, 5400], [1] * 5400, [5400, 0, -0.5], [[1, 1]] * 3),
    {'size': [60, 90], 'counts': [0, 5400]},
    {'size': [60, 90], 'counts': '0' * 100_000},
)
CHAT_VALUES = (
    *words('hub  llama3  pad  {mark9}  <image>  2/point:1,1  iVBORw0KGgo=  stop'),
    *([], [''], ['<image>'] * 300, 'x' * 100_000),
)
FILES = words('x  []  ../model  model-00001-of-00002.safetensors  /dev/zero  .')


class Target(NamedTuple):
    """`valid` writes the files that `read` reads; `inputs` are files that replace some of them."""

    valid: Callable[[Path], None]
    inputs: InputsOf
    read: Callable[[Path], None]


TARGETS = {
    'config': Target(
        base.model, objects('config.json', 'generation_config.json', extra=FIELDS), readers.plan
    ),
    'index': Target(base.shards, objects('model.safetensors.index.json', extra=FILES), readers.plan),
    'safetensors': Target(base.model, safetensors('model.safetensors'), readers.weights),
    'pickles': Target(base.pickle, fixed(named('pytorch_model.bin', archives())), readers.pickle),
    'adapters': Target(
        base.adapter,
        one_of(
            objects('peft/adapter_config.json', 'authors/adapter_config.json', extra=PATTERNS),
            safetensors('peft/adapter_model.safetensors'),
            binaries('authors/*.bin'),
        ),
        readers.adapters,
    ),
    'tokenizer': Target(
        base.model,
        one_of(
            objects('tokenizer.json', extra=PARTS),
            objects('tokenizer_config.json', 'special_tokens_map.json', extra=PARTS),
            tokenizers,
            binaries('tokenizer.json'),
        ),
        readers.tokenizer,
    ),
    'sentencepiece': Target(
        base.sentencepiece,
        one_of(binaries('tokenizer.model'), objects('added_tokens.json', 'tokenizer_config.json')),
        readers.tokenizer,
    ),
    'processor': Target(
        base.model,
        objects('preprocessor_config.json', 'processor_config.json', 'config.json', 'tokenizer_config.json'),
        readers.processor,
    ),
    'messages': Target(base.messages, objects('messages.json', extra=MESSAGE_VALUES), readers.messages),
    'chats': Target(base.saved_chat, objects('chat.json', extra=(*PLACES, *CHAT_VALUES)), readers.saved_chat),
    'templates': Target(base.model, fixed(chat_templates()), readers.chat),
    'converted': Target(
        base.converted,
        one_of(
            objects(
                *('converted/vipllava.json', 'converted/config.json', 'converted/params/_METADATA'),
                extra=(*SIZES, 'float64', 'bfloat16', 'int4'),
            ),
            binaries('converted/params/**/*'),
        ),
        readers.converted,
    ),
    'pictures': Target(base.pictures, pictures, readers.picture),
    'marks': Target(base.mark, fixed(named('mark.json', marks())), readers.mark),
    'regions': Target(
        base.data,
        one_of(objects('coco.json', extra=REGION_VALUES), binaries('coco.json'), binaries('boxes.csv')),
        data_readers.regions,
    ),
    'rows': Target(base.data, fixed(rows()), data_readers.rows),
    'journals': Target(
        base.journals,
        one_of(journal('answers.jsonl'), journal('run/metrics.jsonl'), objects('run/run.json')),
        data_readers.journals,
    ),
    'toml': Target(base.data, fixed(named('run.toml', toml_files(base.RUN))), data_readers.run),
    'commands': Target(base.data, fixed(commands()), data_readers.command),
    'files': Target(
        base.data,
        with_command(
            one_of(
                fixed(rows()),
                binaries('photo.png'),
                safetensors('model/model.safetensors'),
                objects('model/config.json', 'model/preprocessor_config.json', 'model/tokenizer_config.json'),
                binaries('model/*.json*'),
            )
        ),
        data_readers.command,
    ),
}
