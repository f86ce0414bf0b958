"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from genrank.serving.user_cache import UserCache

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Edges of latency."""
COUNTS = tuple(float(1 << power) for power in range(15))
"""Edges of batch sizes."""


class Metrics:
    """What is counted and timed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self.answers = Counter("genrank_answers", "Answers by HTTP status.", ["status"], registry=self.registry)
        self.stage = Histogram(
            "genrank_stage_seconds",
            "Time of each stage: read (the body arrives), parse, queue (until its batch), score (its batch), write, total.",
            ["stage"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.batch_requests = Histogram(
            "genrank_batch_requests", "Requests scored together.", registry=self.registry, buckets=COUNTS
        )
        self.batch_tokens = Histogram(
            "genrank_batch_tokens", "Tokens scored together.", registry=self.registry, buckets=COUNTS
        )
        self.candidates = Counter("genrank_candidates", "Candidates scored.", registry=self.registry)
        self.at_work = Gauge("genrank_bodies_at_work", "Bodies at work.", registry=self.registry)
        self.ids = Counter(
            "genrank_ids",
            "Ids looked up, by logical table and whether they have a row.",
            ["table", "row"],
            registry=self.registry,
        )
        self.loads = Counter("genrank_model_loads", "Models loaded, or refused.", ["result"], registry=self.registry)
        self.model = Gauge(
            "genrank_model_info", "1 for the model being served.", ["model", "fingerprint"], registry=self.registry
        )

    def serving(self, model: str, fingerprint: str) -> None:
        """The model being served, and none besides."""
        self.model.clear()
        self.model.labels(model, fingerprint).set(1)

    def watch(self, cache: UserCache) -> None:
        """Report a user cache's counts and size."""
        self.registry.register(_CacheCollector(cache))

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class _CacheCollector(Collector):
    """Reads a cache's own counts when they are asked for."""

    def __init__(self, cache: UserCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """Look-ups by what became of them, and memory by where it is."""
        events = CounterMetricFamily(
            "genrank_user_cache", "Users' keys and values: what became of look-ups.", labels=["event"]
        )
        for event, count in asdict(self._cache.counts).items():
            events.add_metric([event], count)
        yield events
        memory = GaugeMetricFamily("genrank_user_cache_bytes", "Memory that cached users take.", labels=["where"])
        for where, size in zip(("device", "host"), self._cache.bytes, strict=True):
            memory.add_metric([where], size)
        yield memory
