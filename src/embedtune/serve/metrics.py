"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from embedtune.serve.models import TokenCounts

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "embedtune_requests", "Requests answered.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "embedtune_request_seconds",
            "From a request's first byte to its answer's last.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._texts = Counter("embedtune_texts", "Texts answered.", ("model",), registry=registry)
        self._tokens = Counter("embedtune_tokens", "Tokens read by backbones.", ("model",), registry=registry)
        self._truncated = Counter(
            "embedtune_truncated_texts", "Texts whose end was not read.", ("model",), registry=registry
        )
        self._batch_texts = Histogram(
            "embedtune_batch_texts", "Texts that were read at once.", buckets=_SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "embedtune_batch_seconds", "How long that took.", buckets=_SECONDS, registry=registry
        )
        self.queue_texts = Gauge("embedtune_queue_texts", "Texts that wait.", registry=registry)
        self.healthy = Gauge("embedtune_healthy", "1 where /health is green, else 0.", registry=registry)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` must be one of few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def observe_batch(self, n_texts: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_texts.observe(n_texts)
        self._batch_seconds.observe(seconds)

    def count_texts(self, model: str, counts: TokenCounts) -> None:
        """Count a request's texts, their tokens and those that were cut."""
        self._texts.labels(model).inc(len(counts.read))
        self._tokens.labels(model).inc(int(counts.read.sum()))
        self._truncated.labels(model).inc(int(counts.cut.sum()))

    def render(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)
