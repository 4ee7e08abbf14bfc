import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import WORDS, tiny_tokenizer, write_processor_files
from vipllava_jax.inputs.tokenizer import TextStream, Tokenizer

TINY = Tokenizer(tiny_tokenizer(), {'add_bos_token': True})
any_text = st.text(st.characters(exclude_characters='<▁', codec='utf-8'), max_size=9)
texts = st.lists(
    st.sampled_from([*WORDS, '<image>', '</s>', '<pad>', ' ', '\n', 'é', '😀', ' the']) | any_text
)


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory):
    """The folder of an original checkpoint, with a tokenizer.model and without a tokenizer.json."""
    import sentencepiece

    folder = tmp_path_factory.mktemp('model')
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 3),
        model_prefix=str(folder / 'tokenizer'),
        model_type='bpe',
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return folder


def test_bos_is_added_once_and_special_tokens_are_recognized():
    assert TINY.encode('')[0] == TINY.bos == 1
    assert TINY.encode('<s>hi') == TINY.encode('hi')
    assert TINY.encode('hi<image></s>')[-2:] == [398, 2]
    core = tiny_tokenizer()
    core.post_processor = None
    assert Tokenizer(core, {'add_bos_token': True}).encode('hi') == TINY.encode('hi')
    assert Tokenizer(core, {}).encode('hi') == TINY.encode('hi')[1:]


def test_a_space_follows_an_image_as_in_training():
    pieces = [TINY.backend.id_to_token(id) for id in TINY.encode('USER: <image>\nWhat')]
    assert pieces[:2] == ['<s>', '▁']
    assert pieces[pieces.index('<image>') + 1 :][:3] == ['▁', '<0x0A>', 'W']


@given(texts.map(''.join))
def test_decoding_restores_the_text(text):
    for special in ('<image>', '</s>', '<pad>', '<s>', '<unk>'):
        text = text.replace(special, '')
    assert TINY.decode(TINY.encode(text)) == text.strip()


def test_ids_beyond_the_vocabulary_are_dropped():
    assert TINY.decode([*TINY.encode('USER'), 400, 5000, 398, 399, 2]) == 'USER'
    with pytest.raises(ValueError, match='ids start at 0, found -100'):
        TINY.decode([5, -100])


@given(st.lists(st.integers(0, 420) | st.sampled_from([243, 162, 155, 131, 13]), max_size=40), st.data())
def test_streamed_pieces_join_to_the_decoded_text(ids, data):
    stream, pieces, start = TextStream(TINY), [], 0
    while start < len(ids):
        count = data.draw(st.integers(1, 5))
        pieces.append(stream.push(ids[start : start + count]))
        start += count
    pieces.append(stream.end())
    assert ''.join(pieces) == TINY.decode(ids)


@given(texts.map(''.join))
def test_streamed_pieces_never_split_a_character(text):
    ids, stream = TINY.encode(text), TextStream(TINY)
    pieces = [stream.push([id]) for id in ids] + [stream.end()]
    assert ''.join(pieces) == TINY.decode(ids)
    assert '\N{REPLACEMENT CHARACTER}' not in ''.join(pieces).replace(
        '\N{REPLACEMENT CHARACTER}', '', text.count('\N{REPLACEMENT CHARACTER}')
    )


def test_complete_words_are_streamed_immediately():
    stream = TextStream(TINY)
    assert stream.push(TINY.encode('USER: What is')) == 'USER: What is'
    assert stream.push(TINY.encode('the dog')[1:]) == ' the dog'


def test_streaming_a_byte_level_tokenizer_never_splits_a_character():
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = Tokenizer(core, {})
    ids, stream = tokenizer.encode('né 😀!'), TextStream(tokenizer)
    assert [stream.push([id]) for id in ids] == ['n', '', 'é', '', '', '', '', ' 😀', '!']


def test_the_cost_of_streaming_depends_only_on_the_new_ids(monkeypatch):
    spelled = []
    spell = Tokenizer.decode_untrimmed
    monkeypatch.setattr(
        Tokenizer, 'decode_untrimmed', lambda self, ids: spelled.append(len(ids)) or spell(self, ids)
    )
    stream = TextStream(TINY)
    for id in [*TINY.encode(WORDS[0] * 20), *[243] * 500]:
        stream.push([id])
    assert max(spelled) <= 2


@pytest.mark.parametrize('added', [{}, {'<image>': 420, '<pad>': 421}])
@given(parts=texts)
def test_a_sentencepiece_model_keeps_its_ids(model_folder, added, parts):
    import sentencepiece

    (model_folder / 'added_tokens.json').write_text(json.dumps(added))
    ours = Tokenizer.load(model_folder)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_folder / 'tokenizer.model'))
    special = {'<image>': 420, '<pad>': 421, '</s>': 2}
    chunks, text = [''], ''.join(part for part in parts if '<' not in part or part in special)
    for piece in [part for part in parts if '<' not in part or part in special]:
        if piece in special:
            chunks += [piece, '']
        else:
            chunks[-1] += piece
    expected = [
        id
        for chunk in chunks
        if chunk
        for id in ([special[chunk]] if chunk in special else theirs.encode(chunk))
    ]
    assert ours.encode(text) == [1, *expected]
    assert ours.special_ids == {0, 1, 2, 420, 421}


def test_a_sentencepiece_model_with_other_ids_is_refused(model_folder, tmp_path):
    shutil.copyfile(model_folder / 'tokenizer.model', tmp_path / 'tokenizer.model')
    (tmp_path / 'added_tokens.json').write_text('{"<image>": 32000}')
    with pytest.raises(ValueError, match=r'tokenizer.model has 420 pieces, so that <image> cannot have'):
        Tokenizer.load(tmp_path)


def test_invalid_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no tokenizer.json or tokenizer.model in .*: copy one'):
        Tokenizer.load(tmp_path)
    (tmp_path / 'tokenizer.model').write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'tokenizer.model is not a sentencepiece model'):
        Tokenizer.load(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('{"version": ')
    with pytest.raises(ValueError, match=r'tokenizer.json is not a tokenizer'):
        Tokenizer.load(tmp_path)
    write_processor_files(tmp_path)
    for content, message in [('{"a', 'not JSON'), ('[]', 'expected a JSON object, found list')]:
        (tmp_path / 'tokenizer_config.json').write_text(content)
        with pytest.raises(ValueError, match=rf'tokenizer_config.json.*{message}'):
            Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match='not valid Unicode at character 2'):
        TINY.encode('ab\udc80')


@given(texts.map(''.join))
def test_spans_locate_each_token_in_the_text(text):
    for tokenizer in (TINY, Tokenizer(TINY.backend, {})):
        ids, spans = tokenizer.encode_with_spans(text)
        assert ids == tokenizer.encode(text)
        assert len(spans) == len(ids)
        assert spans[0] == (0, 0)
        for id, (start, end) in zip(ids, spans, strict=True):
            if id == TINY.token_to_id('<image>'):
                assert text[start:end] == '<image>'
        assert [start for start, _ in spans] == sorted(start for start, _ in spans)
        assert max(end for _, end in spans) <= len(text)
