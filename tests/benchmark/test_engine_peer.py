"""transformers answers the engine's requests as `generate` does, also in batches of different lengths."""

import pytest

import vipllava_jax as vj
from vipllava_jax.benchmark.engine_parts import planned
from vipllava_jax.benchmark.engine_requests import Request, Requests
from vipllava_jax.benchmark.engine_words import words_processor
from vipllava_jax.benchmark.subject import Subject, random_params, silent
from vipllava_jax.placement import place

pytestmark = pytest.mark.parity


@pytest.fixture(scope='module')
def subject(cfg):
    return Subject(place(random_params(cfg, 'float32'), cfg), silent(cfg))


@pytest.fixture(scope='module')
def model(subject):
    import torch

    from vipllava_jax.benchmark import peer

    torch.set_num_threads(1)
    return peer.copied(subject)


@pytest.fixture(scope='module')
def requests(subject):
    made = Requests(subject.cfg)
    sizes = [(20, 5), (31, 9), (7, 1)]
    return [
        Request(' '.join(made.words[i : i + text]), request.picture, 5 + text, new)
        for i, ((text, new), request) in enumerate(zip(sizes, made.new_pictures(3, 1), strict=True))
    ]


@pytest.mark.slow
@pytest.mark.parametrize('rows', [*(pytest.param(n, marks=pytest.mark.by_hand) for n in (1, 2)), 3])
def test_answers_are_those_of_generate(subject, model, requests, rows):
    from vipllava_jax.benchmark.engine_peer import Batches

    processor = words_processor(subject.cfg)
    batch = processor(
        [request.prompt for request in requests], [r.picture for r in requests], template='plain'
    )
    out = vj.generate(subject.params, batch, cfg=subject.cfg, max_new_tokens=9)
    expected = [processor.decode(ids[: r.new]) for ids, r in zip(out.tokens, requests, strict=True)]
    batches = Batches(model, processor, rows)
    found = [text for i in range(0, 3, rows) for text in batches.answer(requests[i : i + rows])]
    assert found == expected


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved(subject, model, requests, monkeypatch):
    import torch

    from vipllava_jax.benchmark.engine_peer import Batches

    sizes = []

    def answer(batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.cuda.OutOfMemoryError
        return ['w7']

    batches = Batches(model, words_processor(subject.cfg), 4)
    monkeypatch.setattr(batches, 'answer', answer)
    load = batches.send(requests)
    assert sizes == [3, 2, 1, 1, 1]
    assert [timing.new for timing in load.timings] == [5, 9, 1]
    assert all(timing.first is None for timing in load.timings)
    monkeypatch.setattr(batches, 'answer', lambda batch: answer([''] * 2))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        batches.send(requests)


def test_only_parts_that_suit_batches_are_measured(subject, model, monkeypatch):
    from vipllava_jax.benchmark import engine_peer

    monkeypatch.setattr(engine_peer.Batches, 'answer', lambda self, batch: [''] * len(batch))
    results = planned(subject.cfg, ['saturation', 'mixed', 'lone', 'arrivals'], 4, [50])
    measured = [*engine_peer.measure(results, model, words_processor(subject.cfg))]
    assert [result.part for result in measured] == ['saturation', 'mixed']
    assert [len(result.sides[engine_peer.NAME].loads) for result in measured] == [3, 1]


def test_a_discarded_side_frees_its_weights(subject, model):
    import weakref

    from vipllava_jax.benchmark.peer import Compiled, Default

    class Weights:
        pass

    weights = Weights()
    gone = weakref.ref(weights)
    for kind in (Default, Compiled):
        side = kind(subject, weights)
        side.discard()
        assert side.model is None
    del weights
    assert gone() is None
