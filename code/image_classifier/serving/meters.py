"""What a scraper may read of the endpoint, in Prometheus' format: counted by the front, for loopback only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from image_classifier.serving.drift_watch import Departure

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: an answer takes from a hundredth (int8 on a fast chip) to some tenths (fp32 in a queue); the last is a limit.
BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Meters:
    """Everything that is counted.

    Args:
        num_alive: how many workers live.
        num_under_way: how many requests are being answered, or wait for a worker.
        num_connections: how many clients are connected.
    """

    def __init__(
        self,
        *,
        num_alive: Callable[[], float],
        num_under_way: Callable[[], float],
        num_connections: Callable[[], float],
    ) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "classifier_requests", "Answers by path and HTTP status.", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "classifier_request_seconds",
            "From the head of a request to its answer, of invocations that were answered with 200.",
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self.retries = Counter(
            "classifier_retries",
            "Requests given to a second worker, since one died.",
            registry=self._registry,
        )
        for name, text, value in (
            ("classifier_workers_alive", "Worker processes that have loaded the model.", num_alive),
            ("classifier_requests_under_way", "Requests that are being answered or wait for a worker.", num_under_way),
            ("classifier_connections", "Clients that are connected.", num_connections),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def watch_drift(self, found: Callable[[], Mapping[str, Departure]], num_answers: Callable[[], float]) -> None:
        """Shows also what a drift watch found at its last look."""
        self._registry.register(_DriftMeters(found, num_answers))

    def text(self) -> bytes:
        """All of it, as a scraper reads it."""
        return generate_latest(self._registry)


class _DriftMeters(Collector):
    def __init__(self, found: Callable[[], Mapping[str, Departure]], num_answers: Callable[[], float]) -> None:
        self._found = found
        self._num_answers = num_answers

    def collect(self) -> Iterator[Metric]:
        index = GaugeMetricFamily(
            "classifier_drift_index",
            "Population stability index of the latest answers against the validation images.",
            labels=["statistic"],
        )
        departed = GaugeMetricFamily(
            "classifier_drift_departed", "1 where the index is above what chance can do and 0.25.", labels=["statistic"]
        )
        for name, each in self._found().items():
            index.add_metric([name], each.index)
            departed.add_metric([name], float(each.is_one))
        answers = CounterMetricFamily("classifier_drift_answers", "Answers that were compared.", self._num_answers())
        yield from (index, departed, answers)
