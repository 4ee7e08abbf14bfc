"""The parts of the engine's benchmark, with an engine that takes a known time."""

import jax.numpy as jnp
import pytest

from tests.benchmark.engines import Engine
from vipllava_jax.benchmark import engine_parts, engine_run
from vipllava_jax.benchmark.engine_parts import LoadSide, check_lengths, measure, planned
from vipllava_jax.benchmark.engine_words import words_processor
from vipllava_jax.benchmark.subject import PRESETS, Subject, silent
from vipllava_jax.benchmark.timing import NO_MEMORY, OURS
from vipllava_jax.cli.bench_engine import PARTS

TINY = silent(PRESETS['tiny'])


def parts(*names, count=6, percents=(50, 100)):
    return planned(TINY, names, count, percents)


def test_every_part_is_measured_in_the_same_order():
    results = parts(*reversed(PARTS), count=200)
    assert [result.part for result in results] == [*PARTS, 'arrivals']
    assert [result.count for result in results] == [200, 128, 200, 5, 200, 200]
    assert [result.size for result in results][:3] == ['128 + 64', '92 + 64', '88…988 + 1…256']
    assert str(results[-1]) == 'arrivals at 100 % of saturation, 200 requests, 128 + 64'


def test_parts_and_repeats_share_no_picture():
    results, seen = parts(*PARTS, count=2), set()
    for result in results:
        for repeat in range(result.repeats + 1):
            pictures = {request.picture.tobytes() for request in result.requests(repeat)}
            assert not seen & pictures
            seen |= pictures


def test_saturation_is_repeated_after_a_warm_up():
    engine, (result,) = Engine(end=0.05), parts('saturation', count=40)
    assert [*measure([result], engine)] == [result]
    side = result.sides[OURS]
    assert len(engine.questions) == engine_parts.WARM_UP + 3 * 40
    assert len(side.loads) == len(side.samples) == 3
    assert len(side.timings) == 3 * 40
    assert side.rate == pytest.approx(sorted(load.rate for load in side.loads)[1])
    assert side.rows_in_use == 0.75
    assert side.warm_up >= 0.05


def test_arrivals_come_at_a_share_of_the_saturation():
    engine = Engine(end=0.02)
    results = parts('arrivals', count=8, percents=[50])
    first, arrivals = measure(results, engine)
    assert first.part == 'saturation'
    assert arrivals.offered == pytest.approx(first.sides[OURS].rate / 2)
    side = arrivals.sides[OURS]
    assert len({timing.first for timing in side.timings}) == 24
    gaps = [b - a for a, b in zip(engine.at[-8:], engine.at[-7:], strict=False)]
    assert 0.2 / arrivals.offered < sum(gaps) / 7 < 5 / arrivals.offered


def test_lone_requests_wait_for_one_another():
    engine, (result,) = Engine(end=0.02), parts('lone')
    [*measure([result], engine)]
    assert all(b - a >= 0.02 for a, b in zip(engine.at, engine.at[1:], strict=False))
    assert len(result.sides[OURS].timings) == engine_parts.LONE


def test_a_failing_part_is_recorded_and_arrivals_without_a_saturation_say_so():
    results = parts('saturation', 'lone', 'arrivals', percents=[50])
    [*measure(results, Engine(fault='a defect'))]
    saturation, lone, arrivals = (result.sides[OURS].fault for result in results)
    assert saturation == lone == 'RuntimeError: a defect'
    assert 'the saturation could not be measured' in arrivals


@pytest.mark.parametrize('message', ['RESOURCE_EXHAUSTED: no room', 'a defect'])
def test_an_engine_that_does_not_start_is_the_error_of_every_part(monkeypatch, message):
    def fail(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(engine_run, 'Engine', fail)
    run = engine_run.plan(Subject({}, TINY), ['saturation', 'lone'], 4, [50])
    assert len([*engine_run.measure(run, Subject({}, TINY), {}, lambda text: None)]) == 2
    faults = {result.sides[OURS].fault for result in run.results}
    assert faults == ({NO_MEMORY} if 'EXHAUSTED' in message else {'RuntimeError: a defect'})


def test_the_engine_gets_the_chosen_arguments_and_is_closed(monkeypatch):
    monkeypatch.setattr(engine_run, 'Engine', Engine)
    subject, lines = Subject({}, TINY), []
    run = engine_run.plan(subject, ['lone'], 4, [50], rows=8, slots=None, exact=True)
    [*engine_run.measure(run, subject, {}, lines.append)]
    engine = Engine.made[-1]
    assert engine.arguments == {'queue': 1024, 'rows': 8, 'exact': True}
    assert engine.closed
    assert engine.model.cfg == TINY
    assert engine.model.processor.patches == words_processor(TINY).patches
    assert run.about == {
        **dict(rows=4, long_rows=1, slots=1024, compilations=0, exact=True),
        'start_s': run.about['start_s'],
    }
    assert [line.split(':')[0] for line in lines] == ['starting the engine', 'lone, 5 requests, 128 + 64']


def test_weights_are_committed_to_their_device():
    weight = jnp.arange(3.0)
    found = engine_run.committed(weight)
    assert (weight.committed, found.committed) == (False, True)
    assert found.tolist() == weight.tolist()
    assert engine_run.committed(found) is found


def test_requests_longer_than_the_context_are_refused():
    check_lengths(PRESETS['7b'], PARTS)
    small = silent(PRESETS['tiny'])
    small = small.__class__(
        **{**vars(small), 'text': small.text.__class__(**{**vars(small.text), 'context': 600})}
    )
    check_lengths(small, ['saturation', 'lone'])
    with pytest.raises(ValueError, match='up to 1244 tokens'):
        check_lengths(small, ['saturation', 'mixed'])


def test_a_side_without_repeats_has_no_rate():
    assert (LoadSide().rate, LoadSide().rows_in_use, LoadSide().timings) == (None, None, [])
