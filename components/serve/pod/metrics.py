"""What the proxy counts, in Prometheus' form."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """A registry of its own, so that several proxies in one process do not share it."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        labels = ("path", "code", "client")
        self.requests = self._make(Counter, "requests", "Requests that were answered", labels)
        self.seconds = self._make(Histogram, "request_seconds", "Time to the end of an answer", ("path",))
        self.first_token = self._make(Histogram, "first_token_seconds", "Time to an answer's first byte", ("path",))
        self.tokens = self._make(Counter, "tokens", "Tokens that were read and written", ("model", "kind"))
        self.queue = self._make(Gauge, "queue", "Requests that wait or are being answered")
        self.model = self._make(Gauge, "model_info", "What is loaded; the value is always 1", ("model", "digest"))
        self.right = self._make(Gauge, "acceptance_test_right", "Right answers in the acceptance test", ("model",))
        self.questions = self._make(Gauge, "acceptance_test_questions", "Its questions", ("model",))
        self.ready = self._make(Gauge, "ready", "Whether requests are sent here")

    def count_tokens(self, model: str, answer: Mapping[str, Any]) -> None:
        """Count what Ollama says of an answer in its end; of one that broke off it says nothing."""
        self.tokens.labels(model, "prompt").inc(answer.get("prompt_eval_count") or 0)
        self.tokens.labels(model, "answer").inc(answer.get("eval_count") or 0)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _make(self, kind: type, name: str, about: str, labels: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
        options = {"buckets": SECONDS} if kind is Histogram else {}
        return kind(f"chatmetrics_{name}", about, labels, registry=self._registry, **options)
