import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import noise, write_processor_files
from vipllava_jax.config import Config, TextConfig, VisionConfig
from vipllava_jax.data.conversations import encode_conversation
from vipllava_jax.generation.result import Generation
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.inputs.marks import Mark, draw
from vipllava_jax.inputs.pixels import ImageSettings, pixels, uint8_pixels
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.processor_files import PROCESSOR_FILES
from vipllava_jax.inputs.prompts import Turn, render
from vipllava_jax.messages import CheckpointError

IMAGE, PAD, PATCHES = 398, 399, 4


@pytest.mark.parity
def test_batches_equal_those_of_transformers(processor, tokenizer_folder):
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


def test_a_batch_has_padded_tokens_and_images(processor):
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
    np.testing.assert_array_equal(batch.images[0, 0], pixels(picture, ImageSettings(side=28, edge=28)))
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
def test_a_row_does_not_depend_on_other_rows(processor, rows):
    images = [[noise(9, 30, seed=i) for i in range(count)] for _, count in rows]
    batch = processor([text for text, _ in rows], images)
    for row, (text, count) in enumerate(rows):
        alone = processor(text, images[row])
        length = alone.lengths[0]
        assert batch.lengths[row] == length
        np.testing.assert_array_equal(batch.tokens[row, :length], alone.tokens[0, :length])
        np.testing.assert_array_equal(batch.images[row, :count], alone.images[0])


def test_prompts_and_images_can_be_nested_in_several_ways(processor, tmp_path):
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
        ('Hi', np.asarray(picture)),
        ([turns], [np.asarray(picture)]),
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
            'for a list of 2 prompts, images must be a list of 2: .*found a list of 3',
        ),
        (['a', 'b'], 'x.png', 'for a list of 2 prompts, images must be .*found a single image'),
        (['a'], ['x.png', 'y.png'], 'for a list of 1 prompts, images must be .*found a list of 2'),
        ('a', [['x.png']], 'found a list or None in a list'),
        ([], None, 'expected a prompt or a list of prompts'),
        (7, None, 'expected a prompt or a list of prompts, found 7'),
        (['a', 7], None, '^row 1: a prompt is a string, a list of Turns, or a list of messages .*; found 7'),
        ([('user', 'hi')], None, '^row 0: a prompt is a string, a list of Turns, or'),
        ([Turn('user', 'a'), 'b'], None, '^row 0: a prompt is a string, a list of Turns, or'),
        (['a', '<image>'], None, '^row 1: the text has <image> 1 times for 0 image'),
        (['a<image>', 'b'], [['x.png', 'y.png'], None], '^row 0: the text has <image> 1 times for 2 image'),
        (['a', 'b\udc80'], None, '^row 1: the text is not valid Unicode'),
    ],
)
def test_errors_about_arguments_say_what_to_do(processor, prompts, images, message):
    with pytest.raises(ValueError, match=message):
        processor(prompts, images)


def test_invalid_choices_are_refused_before_images_are_read(processor):
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


@pytest.mark.parametrize('fit', ['crop', 'pad', 'squash'])
def test_image_returns_what_the_model_sees(processor, fit):
    picture = noise(40, 31)
    batch = processor(['a', 'b'], [None, [noise(9, 9, 1), picture]], fit=fit)
    expected = uint8_pixels(picture, processor.image_settings, fit)
    np.testing.assert_array_equal(np.asarray(processor.image(batch, row=1, index=1)), expected)
    for row, index in [(0, 0), (1, 2), (1, -1), (2, 0)]:
        with pytest.raises(IndexError):
            processor.image(batch, row, index)


def test_the_repr_is_short(processor, folder):
    text = repr(processor)
    assert re.fullmatch(
        r"Processor\(folder='.*', images=28x28, crop, 4 tokens each, tokens=400, .*=none\)", text
    )
    (folder / 'chat_template.jinja').write_text('<b>' * 1000)
    assert repr(Processor.load(folder)).endswith('chat_template=yes)')
    assert '<th>images</th><td>28x28, crop, 4 tokens each</td>' in processor._repr_html_()


def test_ids_arrays_and_generations_are_decoded(processor):
    ids = processor.tokenizer.encode('A dog.')
    padded = np.array([[*ids, 2, PAD, PAD], [*ids, 2, *ids[1:3]]])
    assert processor.decode(ids) == processor.decode(padded[0]) == 'A dog.'
    assert processor.decode(padded)[0] == 'A dog.'
    lengths, finished = np.array([len(ids), len(ids) + 1]), np.array([False, True])
    out = Generation(padded, lengths, finished, ('length', 'stop'))
    assert processor.decode(out) == ['A dog.', 'A dog.']
    assert processor.decode(out[1:]) == ['A dog.']
    ended = dataclasses.replace(out, eos=(ids[-1],))  # an end id is no part of the text, whatever it spells
    assert processor.decode(ended) == ['A dog', 'A dog']
    stream = processor.text_stream()
    assert stream.push(padded[0]) + stream.end() == 'A dog.'
    assert processor.stop_strings('hub') == ('###',)


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def folder(tmp_path):
    write_processor_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    'fields', [{'num_additional_image_tokens': 0}, {'vision_feature_select_strategy': 'full'}]
)
def test_the_number_of_placeholders_ignores_the_processor_files(folder, fields):
    edit(folder / 'processor_config.json', **fields)
    assert Processor.load(folder).patches == PATCHES


def test_files_of_older_and_newer_versions_are_read(folder):
    new = {
        'image_processor': json.loads((folder / 'preprocessor_config.json').read_text()) | {'do_pad': True}
    }
    edit(folder / 'processor_config.json', **new)
    (folder / 'preprocessor_config.json').unlink()
    assert Processor.load(folder).image_settings.fit == 'pad'

    edit(folder / 'processor_config.json', patch_size=None)
    (folder / 'config.json').write_text('{"vision_config": {"patch_size": 7}}')
    assert Processor.load(folder).patches == 16
    (folder / 'config.json').unlink()
    assert Processor.load(folder).patches == PATCHES


def test_a_folder_of_the_authors_is_read(folder, tmp_path_factory):
    for name in ('preprocessor_config.json', 'processor_config.json'):
        (folder / name).unlink()
    config = {'model_type': 'llava', 'mm_vision_tower': 'clip_4layers_336', 'image_aspect_ratio': 'pad'}
    (folder / 'config.json').write_text(json.dumps(config))
    processor = Processor.load(folder)
    assert (processor.patches, processor.image_settings) == (576, ImageSettings(fit='pad'))
    processor.save(copy := tmp_path_factory.mktemp('copy'))
    again = Processor.load(copy)
    assert (again.patches, again.image_settings) == (576, ImageSettings(fit='pad'))


@pytest.mark.parity
def test_a_folder_of_transformers_5_is_read(processor, tokenizer_folder, tmp_path):
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    images = CLIPImageProcessorPil.from_pretrained(tokenizer_folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    LlavaProcessor(images, tokens, patch_size=14, chat_template='hello').save_pretrained(tmp_path)
    ours = Processor.load(tmp_path)
    assert (ours.image_settings, ours.patches, ours.image_id) == (processor.image_settings, PATCHES, IMAGE)
    assert ours.chat_template.source == 'hello'
    np.testing.assert_array_equal(ours('Hi').tokens, processor('Hi').tokens)


def test_the_chat_template_is_found_in_every_file_that_may_hold_it(folder):
    assert Processor.load(folder).chat_template is None
    with pytest.raises(ValueError, match='has no chat template: choose'):
        Processor.load(folder)('a', template='checkpoint')
    edit(folder / 'tokenizer_config.json', chat_template=[{'name': 'default', 'template': 'one'}])
    assert Processor.load(folder).chat_template.source == 'one'
    (folder / 'chat_template.jinja').write_text('{{ eos_token }}{{ messages[0].content }}')
    processor = Processor.load(folder)
    assert processor('hi', template='checkpoint').tokens[0, :2].tolist() == [1, 2]
    (folder / 'chat_template.json').write_text('{"chat_template": "two"}')
    assert Processor.load(folder).chat_template.source == 'two'
    edit(folder / 'processor_config.json', chat_template='three')
    assert Processor.load(folder).chat_template.source == 'three'


def test_a_saved_processor_can_be_loaded(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp('copy') / 'new'
    processor = Processor.load(folder)
    (folder / 'chat_template.jinja').write_text('hello')
    processor.save(copy)
    processor.save(folder)
    assert {path.name for path in copy.iterdir()} <= set(PROCESSOR_FILES)
    again = Processor.load(copy)
    assert again.image_settings == processor.image_settings
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


def test_invalid_folders_are_refused(folder):
    edit(folder / 'processor_config.json', patch_size=40)
    with pytest.raises(ValueError, match='patch_size: expected a whole number from 1 to 28, .*found 40'):
        Processor.load(folder)
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'"):
        Processor.load(folder / 'nowhere')
    shutil.copyfile(folder / 'tokenizer.json', folder / 'old.json')
    fields = json.loads((folder / 'tokenizer.json').read_text())
    fields['added_tokens'] = fields['added_tokens'][:3]
    (folder / 'tokenizer.json').write_text(json.dumps(fields))
    with pytest.raises(ValueError, match='the tokenizer has no token <image>: copy the tokenizer files'):
        Processor.load(folder)


def test_a_batch_consists_of_numpy_arrays(processor):
    assert all(isinstance(array, np.ndarray) for array in processor('a'))
    assert Batch._fields == ('tokens', 'lengths', 'images', 'image_counts')


def config(**text) -> Config:
    """The config of a model that has the processor of these tests."""
    vision = VisionConfig(image_size=28, patch_size=14, width=32, layers=3, heads=2, mlp=40)
    return Config(vision, TextConfig(**{'vocab': 400, **text}), (-2,), image_token=IMAGE, pad=PAD)


def test_a_processor_is_checked_for_its_model(processor):
    fitted = processor.for_model(config())
    assert fitted.vocab_size == 400
    for ours, plain in zip(fitted('Hi', noise(9, 9)), processor('Hi', noise(9, 9)), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dataclasses.replace(config(), vision=VisionConfig(image_size=56, patch_size=14)),
            'images of 28 pixels in patches of 14 .* takes images of 56 in patches of 14',
        ),
        (
            dataclasses.replace(config(), vision=VisionConfig(image_size=28, patch_size=7)),
            'patches of 14 .* takes images of 28 in patches of 7',
        ),
        (
            dataclasses.replace(config(), image_token=397),
            '<image> has the id 398 in the tokenizer, but image_token_index is 397 in config.json',
        ),
        (config(vocab=399), 'the token <pad> has the id 399, but the embedding of the model has 399 rows'),
        (config(vocab=300), 'the token <pad> has the id 399, but the embedding of the model has 300 rows'),
        (config(vocab=2), 'the token </s> has the id 2, but the embedding of the model has 2 rows'),
    ],
)
def test_a_processor_of_another_model_is_refused(processor, cfg, message):
    with pytest.raises(CheckpointError, match=message):
        processor.for_model(cfg)


def test_the_authors_models_need_no_rows_for_images_and_padding(processor):
    fitted = processor.for_model(dataclasses.replace(config(vocab=IMAGE), pad=0))
    batch = fitted(['Hi', 'Hello there'], [noise(9, 9), None])
    assert (batch.tokens[1, batch.lengths[1] :] == 0).all()
    assert (batch.tokens[0] == IMAGE).sum() == PATCHES


def test_a_token_without_a_row_is_named_at_the_prompt(folder):
    fields = json.loads((folder / 'tokenizer.json').read_text())
    extra = {**fields['added_tokens'][0], 'content': '<e\x1bxtra>', 'id': 400}
    fields['added_tokens'].append(extra)
    (folder / 'tokenizer.json').write_text(json.dumps(fields))
    fitted = Processor.load(folder).for_model(config())
    fitted('Hi')
    message = r'the token <e\\x1bxtra> has the id 400, but the embedding of the model has 400 rows'
    with pytest.raises(ValueError, match='row 1: ' + message):
        fitted(['Hi', 'Hi <e\x1bxtra>'])
    with pytest.raises(ValueError, match=message):
        encode_conversation([Turn('user', 'Hi <e\x1bxtra>'), Turn('assistant', 'Ho')], 0, fitted)


ODD_NUMBERS = [float('nan'), float('inf'), -1, 0, True, '1', [1], {}, 10**400]


@pytest.mark.parametrize('name', ['preprocessor_config.json', 'processor_config.json'])
@pytest.mark.parametrize(
    ('field', 'value'),
    [
        *(('rescale_factor', value) for value in ODD_NUMBERS),
        *(('image_std', [0.5, value, 0.5]) for value in ODD_NUMBERS),
        *(('image_mean', [0.5, value, 0.5]) for value in (float('nan'), True, '1', [1], 10**400)),
        *(('image_mean', value) for value in (7, 'abc', [1, 2], [[1, 2, 3]] * 3, {'a': 1}, [], [1] * 10_000)),
        *(('image_std', value) for value in (7, 'abc', [1, 2], [[1, 2, 3]] * 3, {'a': 1})),
        *(('resample', value) for value in ('bicubic', '3', 77, -1, True, 3.0, [3], 10**400)),
        *(('size', value) for value in (10**9, 0, -1, True, 28.0, '28', [28], {}, {'a': [28]}, 10**400)),
        *(('size', {'height': value, 'width': value}) for value in (10**9, True, 28.5, None)),
        *(('crop_size', value) for value in (10**9, 0, True, '28', {str(n): 28 for n in range(1000)})),
        *(
            (field, 'yes')
            for field in ('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_pad')
        ),
    ],
    ids=str,
)
def test_invalid_image_settings_are_named(folder, name, field, value):
    if name == 'processor_config.json':
        fields = json.loads((folder / 'preprocessor_config.json').read_text()) | {field: value}
        edit(folder / name, image_processor=fields)
    else:
        edit(folder / name, **{field: value})
    with pytest.raises(CheckpointError, match=f'{name}: .*{field}') as caught:
        Processor.load(folder)
    assert len(str(caught.value)) <= 520


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('processor_config.json', {'patch_size': True}),
        ('processor_config.json', {'patch_size': 14.0}),
        ('processor_config.json', {'patch_size': [14] * 1000}),
        ('processor_config.json', {'patch_size': 10**400}),
        ('processor_config.json', {'image_processor': [[]] * 1000}),
        ('processor_config.json', {'image_processor': 7}),
    ],
    ids=range(6),
)
def test_invalid_processor_fields_are_named(folder, name, fields):
    edit(folder / name, **fields)
    with pytest.raises(CheckpointError, match=next(iter(fields))) as caught:
        Processor.load(folder)
    assert len(str(caught.value)) <= 520


@pytest.mark.parametrize('vision', [[], 'x', 7, {'patch_size': None}])
def test_an_invalid_vision_config_gives_the_default_patch_size(folder, vision):
    edit(folder / 'processor_config.json', patch_size=None)
    (folder / 'config.json').write_text(json.dumps({'vision_config': vision}))
    assert Processor.load(folder).patch == 14
