"""What a scraper may read of the endpoint, in Prometheus' format: counted by the front, for loopback only."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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

    def text(self) -> bytes:
        """All of it, as a scraper reads it."""
        return generate_latest(self._registry)
