"""Counters of one server, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """A registry of its own, so that several servers of one process do not mix."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("vmmr_requests", "answers by route and status", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "vmmr_request_seconds",
            "from the head of a request to its answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.pictures = Counter("vmmr_pictures", "results by what came out", ("outcome",), registry=registry)
        self.passes = Histogram("vmmr_pass_pictures", "pictures in one pass", buckets=_SIZES, registry=registry)
        self.waiting = Gauge("vmmr_waiting_pictures", "pictures in the queue", registry=registry)
        self.ready = Gauge("vmmr_ready", "1 while the model is ready", registry=registry)
        self.workers = Counter("vmmr_workers_started", "worker processes started", registry=registry)

    def text(self) -> bytes:
        """All of it, in the text format."""
        return generate_latest(self._registry)
