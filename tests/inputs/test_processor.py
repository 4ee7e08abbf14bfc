import json
import shutil
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import noise, write_processor_files
from vipllava_jax.inputs.marks import Mark, draw
from vipllava_jax.inputs.pixels import Settings, pixels
from vipllava_jax.inputs.processor import FILES, Batch, Processor, bucket
from vipllava_jax.inputs.prompts import Turn, render

IMAGE, PAD, PATCHES = 398, 399, 4


@pytest.mark.parity
def test_batches_are_those_of_transformers(processor, tokenizer_folder):
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    peer = LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(tokenizer_folder),
        PreTrainedTokenizerFast.from_pretrained(tokenizer_folder, padding_side='right'),
        patch_size=14,
        vision_feature_select_strategy='default',
        num_additional_image_tokens=1,
    )
    images = [[noise(40, 31)], [], [noise(28, 28, 1), noise(5, 90, 2)]]
    prompts = ['What is this?', 'Who are you?', '<image>\nand<image> differ?']
    ours = processor(prompts, images)
    texts = [render('vipllava', [Turn('user', p)], len(i)) for p, i in zip(prompts, images, strict=True)]
    theirs = peer(
        text=texts, images=[image for row in images for image in row], padding=True, return_tensors='np'
    )
    width = ours.lengths.max()
    np.testing.assert_array_equal(ours.tokens[:, :width], theirs['input_ids'])
    np.testing.assert_array_equal(ours.lengths, theirs['attention_mask'].sum(1))
    flat = np.concatenate([row[:count] for row, count in zip(ours.images, ours.image_counts, strict=True)])
    np.testing.assert_allclose(flat, theirs['pixel_values'].transpose(0, 2, 3, 1), atol=1.01 / 255 / 0.26)


def test_a_batch_in_full(processor):
    picture = noise(40, 31)
    batch = processor(['What is this?', 'Hello', 'Both?'], [picture, None, [picture, picture]])
    assert batch.tokens.shape == (3, bucket(batch.lengths.max()))
    assert batch.images.shape == (3, 2, 28, 28, 3)
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.float32, np.int32]
    assert batch.image_counts.tolist() == [1, 0, 2]
    assert (batch.tokens == IMAGE).sum(1).tolist() == [PATCHES, 0, 2 * PATCHES]
    for row, length in zip(batch.tokens, batch.lengths, strict=True):
        assert (row[:length] != PAD).all()
        assert (row[length:] == PAD).all()
    np.testing.assert_array_equal(batch.images[0, 0], pixels(picture, Settings(side=28, edge=28)))
    assert not batch.images[0, 1].any()
    assert not batch.images[1].any()
    assert processor('Hello').images.shape == (1, 0, 28, 28, 3)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters='<', codec='utf-8'), max_size=30), st.integers(0, 2)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_row_is_what_it_is_alone(processor, rows):
    images = [[noise(9, 30, seed=i) for i in range(count)] for _, count in rows]
    batch = processor([text for text, _ in rows], images)
    for row, (text, count) in enumerate(rows):
        alone = processor(text, images[row])
        length = alone.lengths[0]
        assert batch.lengths[row] == length
        np.testing.assert_array_equal(batch.tokens[row, :length], alone.tokens[0, :length])
        np.testing.assert_array_equal(batch.images[row, :count], alone.images[0])


@given(st.integers(0, 10_000))
def test_a_bucket_is_the_next_multiple(length):
    assert bucket(length) % 128 == 0
    assert 0 <= bucket(length) - length <= 128
    assert bucket(length) >= 128


def test_prompts_and_images_of_every_nesting(processor, tmp_path):
    picture = noise(30, 30)
    picture.save(tmp_path / 'a.png')
    one = processor('Hi', picture)
    turns = [Turn('user', 'Hi')]
    forms = [
        ('Hi', [picture]),
        (['Hi'], [picture]),
        (['Hi'], [[picture]]),
        (turns, picture),
        ([turns], ([picture],)),
    ]
    forms += [
        ('Hi', tmp_path / 'a.png'),
        ('Hi', str(tmp_path / 'a.png')),
        ('Hi', (tmp_path / 'a.png').read_bytes()),
    ]
    for prompts, images in forms:
        for ours, expected in zip(processor(prompts, images), one, strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert processor(['a', turns]).tokens.shape[0] == 2


@pytest.mark.parametrize(
    ('prompts', 'images', 'message'),
    [
        (
            ['a', 'b'],
            [[], ['x.png', 'y.png'], []],
            'images of a list of 2 prompts are a list as long.*found a list of 3',
        ),
        (['a', 'b'], 'x.png', 'images of a list of 2 prompts are .*found one'),
        (['a'], ['x.png', 'y.png'], 'images of a list of 1 prompts are .*found a list of 2'),
        ('a', [['x.png']], 'found a list or None in a list'),
        ([], None, 'expected a prompt or a list of prompts'),
        (7, None, 'expected a prompt or a list of prompts, found 7'),
        (['a', 7], None, 'a prompt is a text or a list of Turns, found 7'),
        ([('user', 'hi')], None, 'a prompt is a text or a list of Turns'),
        ([Turn('user', 'a'), 'b'], None, 'a prompt is a text or a list of Turns'),
        (['a', '<image>'], None, '^row 1: 1 <image> in the text for 0 image'),
        (['a<image>', 'b'], [['x.png', 'y.png'], None], '^row 0: 1 <image> in the text for 2 image'),
        (['a', 'b\udc80'], None, '^row 1: the text is not valid Unicode'),
    ],
)
def test_wrong_calls_say_what_to_do(processor, prompts, images, message):
    with pytest.raises(ValueError, match=message):
        processor(prompts, images)


def test_wrong_choices_are_found_before_any_work(processor):
    with pytest.raises(ValueError, match="unknown template 'x'"):
        processor('a', 'absent.png', template='x')
    with pytest.raises(ValueError, match="unknown fit 'x'"):
        processor('a', 'absent.png', fit='x')
    with pytest.raises(FileNotFoundError, match='absent.png'):
        processor('a', 'absent.png')
    with pytest.raises(ValueError, match='^image 0 of row 0 is not a picture'):
        processor('a', b'what')


def test_a_mark_that_the_crop_cuts_off_is_a_warning(processor):
    picture = draw(noise(90, 30), Mark('rectangle', box=(3, 5, 20, 20)))
    with pytest.warns(
        UserWarning, match=r"mark rectangle:3,5,20,20:red on image 0 of row 0: fit='pad' \(--fit pad\)"
    ) as caught:
        processor('a', picture)
    assert caught[0].filename == __file__
    processor('a', picture, fit='pad')
    processor('a', draw(noise(90, 30), Mark('rectangle', box=(40, 5, 50, 20))))


def test_decoding_takes_every_form_of_ids(processor):
    class Generation(NamedTuple):
        tokens: np.ndarray
        lengths: np.ndarray

    ids = processor.tokenizer.encode('A dog.')
    padded = np.array([[*ids, 2, PAD, PAD], [*ids, 2, *ids[1:3]]])
    assert processor.decode(ids) == processor.decode(padded[0]) == 'A dog.'
    assert processor.decode(padded)[0] == 'A dog.'
    assert processor.decode(Generation(padded, np.array([len(ids), len(ids) + 1]))) == ['A dog.', 'A dog.']
    stream = processor.stream()
    assert stream.push(padded[0]) + stream.end() == 'A dog.'
    assert processor.stops('hub') == ('###',)


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def folder(tmp_path):
    write_processor_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    'fields', [{'num_additional_image_tokens': 0}, {'vision_feature_select_strategy': 'full'}]
)
def test_placeholders_are_what_the_model_needs_whatever_the_files_say(folder, fields):
    edit(folder / 'processor_config.json', **fields)
    assert Processor.load(folder).patches == PATCHES


def test_files_of_other_eras(folder):
    new = {
        'image_processor': json.loads((folder / 'preprocessor_config.json').read_text()) | {'do_pad': True}
    }
    edit(folder / 'processor_config.json', **new)
    (folder / 'preprocessor_config.json').unlink()
    assert Processor.load(folder).settings.fit == 'pad'

    edit(folder / 'processor_config.json', patch_size=None)
    (folder / 'config.json').write_text('{"vision_config": {"patch_size": 7}}')
    assert Processor.load(folder).patches == 16
    (folder / 'config.json').unlink()
    assert Processor.load(folder).patches == PATCHES


def test_the_authors_own_folder(folder, tmp_path_factory):
    for name in ('preprocessor_config.json', 'processor_config.json'):
        (folder / name).unlink()
    config = {'model_type': 'llava', 'mm_vision_tower': 'clip_4layers_336', 'image_aspect_ratio': 'pad'}
    (folder / 'config.json').write_text(json.dumps(config))
    processor = Processor.load(folder)
    assert (processor.patches, processor.settings) == (576, Settings(fit='pad'))
    processor.save(copy := tmp_path_factory.mktemp('copy'))
    again = Processor.load(copy)
    assert (again.patches, again.settings) == (576, Settings(fit='pad'))


@pytest.mark.parity
def test_a_folder_that_transformers_5_writes(processor, tokenizer_folder, tmp_path):
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    images = CLIPImageProcessorPil.from_pretrained(tokenizer_folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    LlavaProcessor(images, tokens, patch_size=14, chat_template='hello').save_pretrained(tmp_path)
    ours = Processor.load(tmp_path)
    assert (ours.settings, ours.patches, ours.image_id) == (processor.settings, PATCHES, IMAGE)
    assert ours.chat.source == 'hello'
    np.testing.assert_array_equal(ours('Hi').tokens, processor('Hi').tokens)


def test_the_chat_template_lies_in_any_of_its_files(folder):
    assert Processor.load(folder).chat is None
    with pytest.raises(ValueError, match='no chat template of its own'):
        Processor.load(folder)('a', template='checkpoint')
    edit(folder / 'tokenizer_config.json', chat_template=[{'name': 'default', 'template': 'one'}])
    assert Processor.load(folder).chat.source == 'one'
    (folder / 'chat_template.json').write_text('{"chat_template": "two"}')
    assert Processor.load(folder).chat.source == 'two'
    (folder / 'chat_template.jinja').write_text('{{ eos_token }}{{ messages[0].content }}')
    processor = Processor.load(folder)
    assert processor('hi', template='checkpoint').tokens[0, :2].tolist() == [1, 2]


def test_saving_is_loading(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp('copy') / 'new'
    processor = Processor.load(folder)
    (folder / 'chat_template.jinja').write_text('hello')
    processor.save(copy)
    processor.save(folder)
    assert {path.name for path in copy.iterdir()} <= set(FILES)
    again = Processor.load(copy)
    assert again.settings == processor.settings
    for ours, theirs in zip(again('Hi', noise(9, 9)), processor('Hi', noise(9, 9)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('tokenizer.json', 'no tokenizer.json or tokenizer.model in'),
        ('preprocessor_config.json', 'no preprocessor_config.json in .*: copy it there'),
    ],
)
def test_missing_files_are_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        Processor.load(folder)


def test_folders_that_cannot_be(folder):
    edit(folder / 'processor_config.json', patch_size=40)
    with pytest.raises(ValueError, match='patch_size 40 does not fit pictures of 28 pixels'):
        Processor.load(folder)
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'"):
        Processor.load(folder / 'nowhere')
    shutil.copyfile(folder / 'tokenizer.json', folder / 'old.json')
    fields = json.loads((folder / 'tokenizer.json').read_text())
    fields['added_tokens'] = fields['added_tokens'][:3]
    (folder / 'tokenizer.json').write_text(json.dumps(fields))
    with pytest.raises(ValueError, match='has no <image>: copy that of a ViP-LLaVA checkpoint'):
        Processor.load(folder)


def test_a_batch_is_arrays_only(processor):
    assert all(isinstance(array, np.ndarray) for array in processor('a'))
    assert Batch._fields == ('tokens', 'lengths', 'images', 'image_counts')
