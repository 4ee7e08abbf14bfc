"""Histograms that count a value several times at once."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

# Upper bounds in seconds: of requests and their parts, and of the time per token.
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)


class Histogram:
    """How often values were at most each of some bounds; not for several threads."""

    def __init__(self, name: str, help: str, bounds: Sequence[float] = REQUEST_SECONDS) -> None:
        self.name, self.help, self.bounds = name, help, bounds
        self._counts = [0] * (len(bounds) + 1)  # the last one: above all bounds
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += times
        self._sum += value * times

    def family(self) -> HistogramMetricFamily:
        """The histogram as Prometheus reads it."""
        names = [*(str(float(bound)) for bound in self.bounds), '+Inf']
        buckets = [*zip(names, map(float, accumulate(self._counts)), strict=True)]
        return HistogramMetricFamily(self.name, self.help, buckets, self._sum)
