"""Metrics of a server in the format of Prometheus, with vLLM's names after `vipllava_`."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache

import jax
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vipllava_jax.engine.reply import Reply
from vipllava_jax.engine.stats import Stats
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.serving.histograms import TOKEN_SECONDS, Histogram

NAMES = 'vipllava_'
REASONS = 'stop', 'length', 'time'
ABORTS = 'disconnected', 'slow_reader', 'drained', 'error'
LABEL_VALUES = 64  # of a metric at most; further ones are counted as 'other'
Labels = tuple[str, ...]


class Metrics(Collector):
    """Counts requests and their times; `engine_stats` gives the engine's counts, or None before it runs.

    All methods may be called from any thread.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine_stats: Callable[[], Stats | None]) -> None:
        self._engine_stats, self._lock = engine_stats, threading.Lock()
        self._arrived: Counter[Labels] = Counter()
        self._ended: Counter[Labels] = Counter()
        self._rejected: Counter[Labels] = Counter()
        self._succeeded: Counter[Labels] = Counter({(reason,): 0 for reason in REASONS})
        self._aborted: Counter[Labels] = Counter({(why,): 0 for why in ABORTS})
        self._times = ReplyTimes()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        _compile_time()  # counts from now on

    def arrived(self, path: str) -> None:
        """Counts a request that has arrived at the path of an endpoint that asks the engine."""
        with self._lock:
            _count(self._arrived, path)

    def rejected(self, reason: str) -> None:
        """Counts a request that was refused before anything was done for it; `reason` is one of few words."""
        with self._lock:
            _count(self._rejected, reason)

    def ended(
        self, path: str, exchange: Exchange | None, replies: Sequence[Reply], status: int, why: str
    ) -> None:
        """Counts a request that has ended, and the times of its answers.

        `why` is 'finished', 'disconnected', 'slow_reader', 'drained' or 'error'.
        """
        with self._lock:
            _count(self._ended, path, str(status))
            if replies and why != 'finished':
                _count(self._aborted, why)
            for reply in replies:
                if reply.done and not reply.error:
                    self._times.observe(reply)
                    self._succeeded.update((reason,) for reason in reply.ends.reasons)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics but those of the process."""
        if stats := self._engine_stats():
            yield from _engine_families(stats)
        seconds = _compile_time().seconds
        yield _counter('compile_seconds', 'Seconds of compiling, added up over threads', seconds)
        with self._lock:
            yield from (
                _counters('http_requests_arrived', 'Requests', self._arrived, 'path'),
                _counters('http_requests', 'Requests that have ended', self._ended, 'path', 'status'),
                _counters('admission_rejections', 'Requests refused at once', self._rejected, 'reason'),
                _counters('request_success', 'Complete answers', self._succeeded, 'finished_reason'),
                _counters('aborted', 'Requests that ended before their answers', self._aborted, 'why'),
                *self._times.families(),
            )


class ReplyTimes:
    """Histograms of the times of replies."""

    def __init__(self) -> None:
        def histogram(name: str, help: str) -> Histogram:
            return Histogram(f'{NAMES}{name}_seconds', help)

        self.first_token = histogram(
            'time_to_first_token', 'From the request, once it is read, to the first token'
        )
        self.all = histogram('e2e_request_latency', 'From the request, once it is read, to the last token')
        self.queue = histogram('request_queue_time', 'From the request until the engine begins with it')
        self.prefill = histogram('request_prefill_time', 'From when the engine begins to the first token')
        self.decode = histogram('request_decode_time', 'From the first to the last token')
        self.per_token = Histogram(
            f'{NAMES}request_time_per_output_token_seconds', 'Mean time per token of a request', TOKEN_SECONDS
        )
        self.gaps = Histogram(
            f'{NAMES}inter_token_latency_seconds',
            'Mean time per token of a request, counted for each token after the first',
            TOKEN_SECONDS,
        )

    def observe(self, reply: Reply) -> None:
        """Adds the times of a reply that is complete."""
        times = reply.times
        if times.started is None or times.first_token is None or times.finished is None:
            return  # it ended without a token
        self.queue.observe(times.started - times.submitted)
        self.prefill.observe(times.first_token - times.started)
        self.first_token.observe(times.first_token - times.submitted)
        self.decode.observe(decode := times.finished - times.first_token)
        self.all.observe(times.finished - times.submitted)
        lengths = reply.ends.lengths
        if (gaps := int(lengths.max()) - 1) > 0:
            self.per_token.observe(decode / gaps)
            self.gaps.observe(decode / gaps, times=int((lengths - 1).clip(0).sum()))

    def families(self) -> Iterable[Metric]:
        return [histogram.family() for histogram in vars(self).values()]


def _engine_families(stats: Stats) -> Iterator[Metric]:
    waiting = stats.waiting + stats.preparing
    filled = stats.running / max(1, stats.rows + stats.long_rows)
    yield _gauge('num_requests_running', 'Answers that are being generated', stats.running)
    yield _gauge('num_requests_waiting', 'Questions that wait for their pictures or for a row', waiting)
    yield _gauge('kv_cache_usage_perc', 'Share of the rows that are in use, from 0 to 1', filled)
    yield _gauge('prefix_cache_bytes', 'Size of the stored beginnings of prompts', stats.prefix_bytes)
    yield _counter('prompt_tokens', 'Tokens of prompts', stats.prompt_tokens)
    yield _counter('prompt_tokens_cached', 'Tokens of prompts that were stored', stats.cached_tokens)
    yield _counter('generation_tokens', 'Tokens of answers', stats.new_tokens)
    yield _counter('prefix_cache_queries', 'Prompts whose beginnings were looked up', stats.prefix_queries)
    yield _counter('prefix_cache_hits', 'Prompts whose beginnings were stored', stats.prefix_hits)
    yield _counter('late_compilations', 'Programs compiled after the start', stats.compilations)


class _CompileTime:
    """Adds up the seconds in which jax compiles, in all threads of the process."""

    def __init__(self) -> None:
        self.seconds, self._lock = 0.0, threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith('backend_compile_duration'):
            with self._lock:
                self.seconds += duration_secs


_compile_time = cache(_CompileTime)


def _count(counts: Counter[Labels], *labels: str) -> None:
    if labels not in counts and len(counts) >= LABEL_VALUES:
        labels = ('other',) * len(labels)
    counts[labels] += 1


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(NAMES + name, help, value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(NAMES + name, help, value)


def _counters(name: str, help: str, counts: Mapping[Labels, int], *labels: str) -> Metric:
    family = CounterMetricFamily(NAMES + name, help, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(values, count)
    return family
