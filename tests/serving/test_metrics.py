"""Metrics: the names that dashboards know, and values that are those of the replies."""

import re
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vipllava_jax import GenerationSettings
from vipllava_jax.engine.pieces import Times
from vipllava_jax.engine.question import EncodedQuestion, Question
from vipllava_jax.engine.reply import Reply
from vipllava_jax.engine.stats import Counts, Stats
from vipllava_jax.serving.histograms import Histogram
from vipllava_jax.serving.metrics import LABEL_VALUES, Metrics

CHAT = '/v1/chat/completions'
PROCESSOR = SimpleNamespace(tokenizer=SimpleNamespace(pad=0))
STATS = Stats(
    rows=8,
    long_rows=2,
    slots=1024,
    running=5,
    waiting=3,
    preparing=4,
    prefix_bytes=1 << 20,
    **vars(Counts(prompt_tokens=640, cached_tokens=600, new_tokens=64, prefix_queries=4, prefix_hits=3)),
)
NAMES = [
    'num_requests_running',
    'num_requests_waiting',
    'kv_cache_usage_perc',
    'prompt_tokens_total',
    'generation_tokens_total',
    'request_success_total',
    *(
        f'{name}_seconds_{part}'
        for name in (
            *('time_to_first_token', 'inter_token_latency', 'request_time_per_output_token'),
            *('e2e_request_latency', 'request_queue_time', 'request_prefill_time', 'request_decode_time'),
        )
        for part in ('bucket', 'count', 'sum')
    ),
    'prefix_cache_queries_total',
    'prefix_cache_hits_total',
    'compile_seconds_total',
    'aborted_total',
]


def samples(metrics) -> dict[tuple, float]:
    """The rendered values by name without the prefix and by labels."""
    text = metrics.render().decode()
    return {
        (sample.name.removeprefix('vipllava_'), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def reply(lengths=(5,), times=(0.0, 0.5, 0.75, 1.75)) -> Reply:
    """A complete reply of samples of these lengths; the last sample ends by itself, the others do not."""
    n = len(lengths)
    settings = GenerationSettings(num_return_sequences=n, temperature=1.0)
    encoded = EncodedQuestion(
        question=Question('What?'),
        ids=np.arange(3, dtype=np.int32),
        settings=settings,
        limit=5,
        eos=(9,),
        stop_ids=(),
    )
    made = Reply(encoded, PROCESSOR)
    for sample, length in enumerate(lengths):
        ids = [1] * (length - 1) + [9 if sample == n - 1 else 1]
        made.push(sample, ids, now=0.0)
    assert made.done
    made.times = Times(*times)
    return made


def test_the_names_of_the_engine_and_of_requests_are_those_of_dashboards():
    metrics = Metrics(lambda: STATS)
    metrics.rejected('queue_full')
    names = {name for name, *_ in samples(metrics)}
    assert not {*NAMES, 'admission_rejections_total', 'late_compilations_total'} - names
    assert {'process_resident_memory_bytes', 'process_open_fds'} <= names


def test_the_values_of_the_engine():
    found = samples(Metrics(lambda: STATS))
    assert found['num_requests_running',] == 5
    assert found['num_requests_waiting',] == 7
    assert found['kv_cache_usage_perc',] == 0.5
    assert found['prompt_tokens_total',] == 640
    assert found['generation_tokens_total',] == 64
    assert (found['prefix_cache_queries_total',], found['prefix_cache_hits_total',]) == (4, 3)


def test_before_there_is_an_engine_its_metrics_are_left_out():
    found = samples(Metrics(lambda: None))
    assert ('num_requests_running',) not in found
    assert found['request_success_total', 'stop'] == 0


def test_the_times_of_a_complete_reply():
    metrics = Metrics(lambda: None)
    metrics.arrived(CHAT)
    metrics.ended(CHAT, object(), [reply()], 200, 'finished')
    found = samples(metrics)
    sums = {
        'time_to_first_token': 0.75,
        'request_queue_time': 0.5,
        'request_prefill_time': 0.25,
        'request_decode_time': 1.0,
        'e2e_request_latency': 1.75,
        'request_time_per_output_token': 0.25,
        'inter_token_latency': 4 * 0.25,
    }
    assert {name: found[f'{name}_seconds_sum',] for name in sums} == sums
    assert found['inter_token_latency_seconds_count',] == 4
    assert found['request_time_per_output_token_seconds_count',] == 1
    assert found['time_to_first_token_seconds_bucket', '0.5'] == 0
    assert found['time_to_first_token_seconds_bucket', '1.0'] == 1
    assert found['request_success_total', 'stop'] == 1
    assert found['http_requests_arrived_total', CHAT] == 1
    assert found['http_requests_total', CHAT, '200'] == 1


def test_each_sample_counts_as_an_answer():
    metrics = Metrics(lambda: None)
    metrics.ended(CHAT, object(), [reply(lengths=(5, 5, 3))], 200, 'finished')
    found = samples(metrics)
    assert found['request_success_total', 'length'] == 2
    assert found['request_success_total', 'stop'] == 1
    assert found['inter_token_latency_seconds_count',] == 4 + 4 + 2
    assert found['e2e_request_latency_seconds_count',] == 1


def test_an_answer_of_one_token_has_no_time_per_token():
    metrics = Metrics(lambda: None)
    metrics.ended(CHAT, object(), [reply(lengths=(1,))], 200, 'finished')
    found = samples(metrics)
    assert found['time_to_first_token_seconds_count',] == 1
    assert found['inter_token_latency_seconds_count',] == 0
    assert found['request_time_per_output_token_seconds_count',] == 0


@pytest.mark.parametrize('why', ['disconnected', 'slow_reader', 'drained', 'error'])
def test_a_request_that_was_cut_off_is_no_success(why):
    metrics, cut = Metrics(lambda: None), Reply(reply().question, PROCESSOR)
    cut.fail(CancelledError('gone'))
    metrics.ended(CHAT, object(), [cut, reply()], 200, why)
    found = samples(metrics)
    assert found['aborted_total', why] == 1
    assert sum(value for (name, *_), value in found.items() if name == 'aborted_total') == 1
    assert found['request_success_total', 'stop'] == 1
    assert found['e2e_request_latency_seconds_count',] == 1


def test_a_request_that_was_never_asked_is_not_an_aborted_one():
    metrics = Metrics(lambda: None)
    metrics.ended(CHAT, None, [], 400, 'error')
    found = samples(metrics)
    assert found['aborted_total', 'error'] == 0
    assert found['http_requests_total', CHAT, '400'] == 1


def test_the_number_of_labels_is_bounded():
    metrics = Metrics(lambda: None)
    for number in range(10 * LABEL_VALUES):
        metrics.arrived(f'/v1/{number}"\n')
        metrics.ended(f'/{number}', None, [], 404, 'error')
        metrics.rejected(f'reason {number}')
    found = samples(metrics)
    for counter in ('http_requests_arrived_total', 'http_requests_total', 'admission_rejections_total'):
        counts = [value for (name, *_), value in found.items() if name == counter]
        assert len(counts) <= LABEL_VALUES + 1
        assert sum(counts) == 10 * LABEL_VALUES


def test_what_strangers_ask_for_adds_no_labels(live):
    server = live()
    for path in ('/v1/nothing', '/health', '/v1/chat/completions/', '/%22%0a'):
        server.ask('GET', path)
        server.ask('POST', path)
    server.ask('GET')
    assert b'vipllava_http_requests_total{' not in server.ask('GET', '/metrics').body


def test_servers_count_apart():
    one, other = Metrics(lambda: None), Metrics(lambda: None)
    one.arrived(CHAT)
    assert ('http_requests_arrived_total', CHAT) in samples(one)
    assert ('http_requests_arrived_total', CHAT) not in samples(other)


def test_compiling_takes_time():
    metrics = Metrics(lambda: None)
    before = samples(metrics)['compile_seconds_total',]
    jax.jit(lambda x: x * 3 + 1).lower(jax.ShapeDtypeStruct((7,), np.float32)).compile()
    assert samples(metrics)['compile_seconds_total',] > before


def test_it_is_read_while_it_is_written():
    metrics, done = Metrics(lambda: STATS), reply()

    def write():
        for _ in range(300):
            metrics.arrived(CHAT)
            metrics.ended(CHAT, object(), [done], 200, 'finished')

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = samples(metrics)
        bucket = 'e2e_request_latency_seconds_bucket'
        assert found[bucket, '+Inf'] == found['e2e_request_latency_seconds_count',]
    assert samples(metrics)['http_requests_total', CHAT, '200'] == 1200


def test_a_histogram_counts_values_at_its_bounds_below_them():
    histogram = Histogram('h', 'help', (1, 2))
    for value, times in ((0.5, 1), (1, 2), (2, 3), (3, 4)):
        histogram.observe(value, times)
    values = {s.labels.get('le', s.name): s.value for s in histogram.family().samples}
    assert values == {'1.0': 3, '2.0': 6, '+Inf': 10, 'h_count': 10, 'h_sum': 20.5}


def test_the_page_lists_all_metrics():
    page = (Path(__file__).parent.parent.parent / 'docs/serving.md').read_text()
    table = page.partition('### Metrics')[2].partition('\n\n## ')[0]
    rows = re.findall(r'^\| (`.*?) \|', table, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r'`([a-z0-9_]+)(?:\{[a-z_,]+\})?`', row)]
    assert len(listed) == len({*listed})
    families = text_string_to_metric_families(Metrics(lambda: STATS).render().decode())
    rendered = {
        family.name.removeprefix('vipllava_') + ('_total' if family.type == 'counter' else '')
        for family in families
        if family.name.startswith('vipllava_')
    }
    assert {*listed} == rendered
