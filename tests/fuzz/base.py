"""Writes valid files of a very small model, from which the inputs are derived."""

import contextlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.convert.files import pair, write_adapter, write_bin, write_safetensors
from tests.fuzz.pickles import STORAGES, VALID, archive
from tests.makers import WORDS, noise, write_processor_files
from vipllava_jax.config import Config, TextConfig, VisionConfig

SIZE = (90, 60)
MODES = ('RGB', 'L', 'P', '1', 'LA', 'RGBA', 'CMYK', 'I;16')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'ICO')
CFG = Config(
    vision=VisionConfig(image_size=28, patch_size=14, width=16, layers=3, heads=2, mlp=20),
    text=TextConfig(vocab=400, width=24, layers=2, heads=6, kv_heads=2, head_size=4, mlp=28, context=1024),
    feature_layers=(-2, -3, 3),
    image_token=398,
    pad=399,
)
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
)
DOT = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=='
MESSAGES: list[Any] = [
    {'role': 'system', 'content': 'Be brief.'},
    {
        'role': 'user',
        'content': [
            {'type': 'text', 'text': 'What is it?'},
            {'type': 'image_url', 'image_url': {'url': f'data:image/png;base64,{DOT}', 'detail': 'auto'}},
        ],
    },
    {'role': 'assistant', 'content': [{'type': 'text', 'text': 'A dot.'}]},
    {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'And this?'}]},
]
ROWS: list[Any] = [
    {
        'id': 'a',
        'image': 'photo.png',
        'bboxes': [[10, 10, 50, 40]],
        'segmentations': [[[10, 10, 50, 10, 30, 40]]],
        'conversations': [
            {'from': 'human', 'value': '<image>\nWhat is <bbox>?'},
            {'from': 'gpt', 'value': 'A dog.'},
        ],
    },
    {
        'id': 'b',
        'image': ['photo.png', 'photo.png'],
        'marks': ['2/rectangle:10,10,50,40:red:width=2'],
        'conversations': [{'from': 'human', 'value': 'Compare.'}, {'from': 'gpt', 'value': 'The same.'}],
    },
    {'image': 'photo.png', 'question': 'How many?', 'answer': ['one', 1], 'type': 'count'},
    {'question_id': 1, 'image': 'photo.png', 'text': 'What is it?', 'category': 'bbox'},
    {
        'id': 'v7w-1',
        'image': 'photo.png',
        'question': 'Which?',
        'bboxes': [[n, n, n + 9, n + 9] for n in range(4)],
        'answer': [0, 0, 9, 9],
    },
    {
        'id': 'vcr-1',
        'image': 'photo.png',
        'meta_dir': 'meta.json',
        'class_names': ['person', 'dog'],
        'question': ['Why', 'is', [0], '?'],
        'answer_choices': [['A'], ['B', [1]]],
        'answer_label': 0,
        'rationale_choices': [['C'], ['D']],
        'rationale_label': 1,
    },
]
COCO = {
    'images': [{'id': 1, 'file_name': 'photo.png', 'width': 90, 'height': 60}],
    'annotations': [
        {
            'id': 1,
            'image_id': 1,
            'category_id': 1,
            'bbox': [10, 10, 40, 30],
            'segmentation': [[1, 1, 40, 1, 9, 50]],
        },
        {'id': 2, 'image_id': 1, 'segmentation': {'size': [60, 90], 'counts': [70, 9, 51, 9, 5261]}},
        {'id': 3, 'image_id': 1, 'segmentation': {'size': [60, 90], 'counts': 'V29c10jR5'}},
    ],
    'categories': [{'id': 1, 'name': 'dog'}],
}
RUN = 'model = "model"\ndata = ["rows.json"]\noutput = "run"\nsteps = 3\nbatch = 1\n'
META = {'boxes': [[1, 1, 40, 50, 0.9], [50, 5, 80, 55, 0.8]], 'segms': [[[[1, 1], [40, 1], [20, 50]]], []]}

GENERATION = {
    **{'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 399, 'do_sample': True, 'temperature': 0.5},
    **{'num_return_sequences': 2, 'num_beams': 2, 'min_new_tokens': 1, 'max_new_tokens': 9, 'max_time': 60},
    **{'bad_words_ids': [[3, 4]], 'sequence_bias': [[[5, 6], 1.5]], 'suppress_tokens': [7]},
    **{'exponential_decay_length_penalty': [3, 1.1], 'early_stopping': 'never', 'stop_strings': ['x']},
    **{'guidance_scale': 2.0, 'forced_bos_token_id': 8},
}


def model(folder: Path) -> None:
    """A PyTorch checkpoint with its processor."""
    from vipllava_jax.convert.table import leaves
    from vipllava_jax.hugging_face import to_hugging_face

    write_processor_files(folder)
    rng = np.random.default_rng(0)
    tensors = {leaf.name: np.float32(rng.standard_normal(leaf.shapes[0]) / 8) for leaf in leaves(CFG)}
    write_safetensors(folder / 'model.safetensors', tensors)
    write(folder / 'config.json', to_hugging_face(CFG))
    write(folder / 'generation_config.json', GENERATION)
    write(folder / 'special_tokens_map.json', {'bos_token': '<s>', 'eos_token': {'content': '</s>'}})
    (folder / 'chat_template.jinja').write_text(CHAT)


def saved_chat(folder: Path) -> None:
    """The model, and a chat with it."""
    from vipllava_jax.answering.chat_files import SavedChat, write_chat
    from vipllava_jax.answering.chat_turns import Exchange, Question

    model(folder / 'model')
    first = Question('What is {mark}?', (noise(*SIZE),), ('1/rectangle:1,1,40,50:red',))
    exchanges = Exchange(first, 'A dog.', 'stop'), Exchange(Question('Why?'), 'So.', 'length', 1)
    write_chat(folder / 'chat.json', SavedChat('Be brief.', 'vipllava', 'pad', exchanges), folder / 'model')


def messages(folder: Path) -> None:
    """The model, and a conversation in OpenAI's format."""
    model(folder)
    write(folder / 'messages.json', {'messages': MESSAGES})


def shards(folder: Path) -> None:
    """The model in two files with an index."""
    model(folder)
    arrays = [*tensors((folder / 'model.safetensors').read_bytes()).items()]
    weight_map = {}
    for n, part in enumerate((arrays[::2], arrays[1::2]), 1):
        file = f'model-{n:05}-of-00002.safetensors'
        write_safetensors(folder / file, dict(part))
        weight_map |= {name: file for name, _ in part}
    (folder / 'model.safetensors').unlink()
    write(folder / 'model.safetensors.index.json', {'metadata': {'total_size': 1}, 'weight_map': weight_map})


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file -> its header and the bytes of its tensors."""
    (size,) = struct.unpack('<Q', data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def tensors(data: bytes) -> dict[str, np.ndarray]:
    """The float32 arrays of a safetensors file."""
    header, body = split(data)
    return {
        name: np.frombuffer(body[slice(*entry['data_offsets'])], '<f4').reshape(entry['shape'])
        for name, entry in header.items()
    }


def converted(folder: Path) -> None:
    """The model, and its conversion."""
    from vipllava_jax.convert import to_flax

    model(folder / 'source')
    to_flax.convert(folder / 'source', folder / 'converted')


def adapter(folder: Path) -> None:
    """The model, and adapters for it in the formats of peft and of the authors."""
    model(folder / 'model')
    rng = np.random.default_rng(0)
    layer = 'base_model.model.model.language_model.layers.{}.self_attn.{}'
    tensors: dict[str, Any] = {}
    for n in range(CFG.text.layers):
        tensors |= pair(layer.format(n, 'q_proj'), 24, 24, rng) | pair(layer.format(n, 'v_proj'), 8, 24, rng)
    write_adapter(folder / 'peft', tensors, target_modules=['q_proj', 'v_proj'])
    write_adapter(folder / 'authors', tensors, 'bin', target_modules=['q_proj', 'v_proj'])
    width = CFG.text.width
    projector = {'model.mm_projector.2.weight': (width, width), 'model.mm_projector.2.bias': (width,)}
    projector_arrays = {name: np.float32(rng.standard_normal(shape)) for name, shape in projector.items()}
    write_bin(folder / 'authors' / 'non_lora_trainables.bin', projector_arrays)


def pickle(folder: Path) -> None:
    folder.mkdir()
    (folder / 'pytorch_model.bin').write_bytes(archive(VALID, STORAGES))


def sentencepiece(folder: Path) -> None:
    """A model whose tokenizer is a tokenizer.model."""
    import sentencepiece

    model(folder)
    (folder / 'tokenizer.json').unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 3), model_prefix=str(folder / 'tokenizer'), model_type='bpe',
        vocab_size=398, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    write(folder / 'added_tokens.json', {'<image>': 398, '<pad>': 399})


def pictures(folder: Path) -> None:
    """Pictures of every format in each of its modes; one of them is the file that is read."""
    (folder / 'formats').mkdir(parents=True)
    picture = noise(*SIZE)
    exif = picture.getexif()
    exif[0x0112] = 6  # the orientation: rotated by 90 degrees
    for form in FORMATS:
        for mode in MODES:
            path = folder / 'formats' / f'{form} {mode}'
            try:
                picture.convert(mode).save(path, form, exif=exif)
            except (
                KeyError,
                OSError,
                ValueError,
            ):  # the format does not support the mode, or this Pillow does not support the format
                path.unlink(missing_ok=True)
    shutil.copyfile(folder / 'formats' / 'PNG RGB', folder / 'picture')


def data(folder: Path) -> None:
    """The model, rows of all forms, a run's settings, answers."""
    model(folder / 'model')
    noise(*SIZE).save(folder / 'photo.png')
    write(folder / 'rows.json', ROWS[:2])
    write(folder / 'meta.json', META)
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS[2:]))
    write(folder / 'coco.json', COCO)
    (folder / 'boxes.csv').write_text('10,10,50,40\nellipse:1,1,9,9:lime\n{"box": [0, 0, 0.5, 0.5]}\n')
    (folder / 'stdin').write_text('What is it?')
    write(
        folder / 'arguments.json',
        ['ask', '--model', 'model', '--image', 'photo.png', '--max-new-tokens', '2'],
    )
    (folder / 'run.toml').write_text(RUN)


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1))


def mark(folder: Path) -> None:
    folder.mkdir()
    write(folder / 'mark.json', {'mark': 'rectangle:10,10,50,40:red:alpha=9', 'size': SIZE, 'seed': 1})


ABOUT = {'model': 'tiny'}


def journals(folder: Path) -> None:
    """Data with answers to all questions, and a run after two steps."""
    from vipllava_jax.evaluation.cases import read_cases
    from vipllava_jax.training.run_record import record_run
    from vipllava_jax.training.settings_file import read_settings

    data(folder)
    cases = read_cases(folder / 'rows.jsonl').cases
    answers = [
        {
            'n': n,
            'id': case.name,
            'task': case.task.name,
            'question': case.turns[-1].text,
            'answer': 'one',
            'finished': True,
        }
        for n, case in enumerate(cases)
    ]
    lines = [{'settings': ABOUT}, *answers]
    (folder / 'answers.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    for step in ('1', '2'):
        (folder / 'run' / 'checkpoints' / step).mkdir(parents=True)
    steps = [{'step': n, 'loss': 1.5, 'eval_loss': 2.0 - n} for n in (1, 2)]
    (folder / 'run' / 'metrics.jsonl').write_text(''.join(json.dumps(step) + '\n' for step in steps))
    with contextlib.chdir(folder):
        record_run(folder / 'run', read_settings('run.toml'), resumes=False)
