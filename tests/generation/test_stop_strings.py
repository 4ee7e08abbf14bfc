"""Answers end with the token that completes a stop string, whatever tokens and characters it consists of."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import vipllava_jax as vj
from vipllava_jax.answering.replies import Reply
from vipllava_jax.generation.result import Generation
from vipllava_jax.generation.stopping import AnswerEnds, RowStops, find_stop, stop_ids
from vipllava_jax.inputs.processor import Processor

DOG = '\N{DOG FACE}'  # four bytes
WORDS = ['A', ' dog', 's', '.', ' ', '\n', '\n\n', '##', '#', 'é', '犬', DOG, 'do', 'g.']
STOPS = ['\n', '. ', '.', 'dog', 's dog', '###', '##', ' #', '\n\n', '犬\n', '犬', 'é', f'{DOG}.', 'never']
ANSWERS = st.lists(st.sampled_from(WORDS) | st.binary(min_size=1, max_size=2), min_size=1, max_size=12)
CUTS = st.lists(st.integers(1, 5), max_size=5)


@pytest.fixture(scope='module')
def model(folder):
    return vj.load(folder)


@pytest.fixture(scope='module')
def processor(folder):
    """Newlines and characters that have no token are tokens of bytes."""
    return Processor.load(folder)


def encode(tokenizer, words):
    """The ids of words, and of bytes that may be no character."""
    ids: list[int] = []
    for word in words:
        if isinstance(word, bytes):
            ids += [tokenizer.token_to_id(f'<0x{byte:02X}>') for byte in word]
        else:
            ids += [id for id in tokenizer.encode(word) if id != tokenizer.bos]
    return np.array(ids)


def generated(processor, ids, cuts, chosen):
    """The Reply and the Generation of these ids, which arrive in chunks."""
    single, stops = stop_ids(chosen, processor), [RowStops(processor, chosen.stop)]
    ends = AnswerEnds(np.array([len(ids)]), [], 0, stops, stop_ids=single)
    parts = [part[None] for part in np.split(ids, np.cumsum(cuts)) if len(part)]
    stream = SimpleNamespace(ends=ends)
    reply = Reply(processor, map(ends.push, parts), 0, 1, stream, chosen)
    text = reply.text()
    out = Generation(
        np.array([reply.tokens]),
        ends.lengths,
        np.array([reply.finished]),
        tuple(ends.reasons),
        chosen.stop,
        chosen.keep_stop,
    )
    return text, out


@settings(deadline=None, max_examples=150)
@given(ANSWERS, CUTS, st.lists(st.sampled_from(STOPS), min_size=1, max_size=3), st.booleans())
@example(['A', ' dog', '.', '\n'], [1, 1], ['\n'], True)
@example(['A', ' dog', '##', '#'], [3], ['###'], True)
@example(['A', DOG.encode()[:2], DOG.encode()[2:], '.'], [2], [f'{DOG}.'], False)
@example(['\n', b'\xff'], [], ['\n'], False)
def test_replies_end_where_the_stop_string_is_complete(processor, words, cuts, stops, keep_stop):
    tokenizer, chosen = processor.tokenizer, vj.GenerationSettings(stop=stops, keep_stop=keep_stop)
    ids = encode(tokenizer, words)
    texts = [tokenizer.decode_untrimmed(ids[:n].tolist()).lstrip() for n in range(1, len(ids) + 1)]
    single = stop_ids(chosen, processor)
    complete = (n for n, text in enumerate(texts, 1) if find_stop(text, stops) or ids[n - 1] in single)
    end = next(complete, None)
    text, out = generated(processor, ids, cuts, chosen)
    assert (out.lengths[0], out.finish_reasons[0]) == ((end, 'stop') if end else (len(ids), 'length'))
    assert [text] == processor.decode(out)
    begin, stop = find_stop(texts[(end or len(ids)) - 1], stops) or (None, None)
    full = texts[(end or len(ids)) - 1]
    assert text == (full.rstrip() if stop is None else full[:stop] if keep_stop else full[:begin].rstrip())


def ending(processor, ids, stop):
    """The number of ids whose text is the first to contain the stop string, and this text."""
    for n in range(1, len(ids) + 1):
        text = processor.tokenizer.decode_untrimmed(ids[:n].tolist()).lstrip()
        if stop in text:
            return n, text
    return None, text.rstrip()


def test_stop_strings_end_the_row_with_the_token_that_completes_them(model):
    processor = model.processor
    batch = processor(['Hi', 'What is it?', 'A dog'])
    run = dict(cfg=model.cfg, max_new_tokens=24, eos=(), temperature=1.0, seed=[1, 2, 3])
    complete = vj.generate(model.params, batch, **run)
    text = processor.decode(complete)[1]
    stop = text[len(text) // 2 :][:3]
    stopped = dict(processor=processor, stop=[stop, 'never found ' * 9], **run)
    for keep_stop in (False, True):
        out = vj.generate(model.params, batch, keep_stop=keep_stop, **stopped)
        for row, answer in enumerate(processor.decode(out)):
            end, text = ending(processor, complete.tokens[row], stop)
            n = end or 24
            assert (out.lengths[row], out.finished[row]) == (n, end is not None)
            assert out.finish_reasons[row] == ('stop' if end else 'length')
            np.testing.assert_array_equal(out.tokens[row, :n], complete.tokens[row, :n])
            assert (out.tokens[row, n:] == model.cfg.pad).all()
            before, found, _ = text.partition(stop)
            assert answer == (before + found if found and keep_stop else before.rstrip())
        assert out.finished[1]
    streamed = np.concatenate([*vj.stream(model.params, batch, **stopped)], axis=1)
    np.testing.assert_array_equal(streamed[:, : out.tokens.shape[1]], out.tokens)
    assert (streamed[:, out.tokens.shape[1] :] == model.cfg.pad).all()


def test_a_stream_ends_when_every_row_has_reached_a_stop_string(model):
    batch = model.processor(['Hi', 'What is it?', 'A dog'])
    run = dict(cfg=model.cfg, max_new_tokens=24, eos=(), temperature=1.0, seed=[1, 2, 3])
    texts = model.processor.decode(vj.generate(model.params, batch, **run))
    stops = [text[:1] for text in texts]
    pieces = [*vj.stream(model.params, batch, processor=model.processor, stop=stops, **run)]
    assert sum(piece.shape[1] for piece in pieces) < 24


def test_a_stop_string_that_is_one_token_is_an_end_id(model):
    batch = model.processor(['Hi', 'What is it?', 'A dog'])
    run = dict(cfg=model.cfg, max_new_tokens=24, eos=(), temperature=1.0, seed=[1, 2, 3])
    ids = vj.generate(model.params, batch, **run).tokens[0].tolist()
    names = [model.processor.tokenizer.backend.id_to_token(id) for id in ids]
    n, token = next((n, name) for n, name in enumerate(names) if n > 3 and name.isalpha() and name.isascii())
    out = vj.generate(model.params, batch, stop=token, processor=model.processor, **run)
    assert out.lengths[0] <= n + 1
    assert out.finish_reasons[0] == 'stop'
