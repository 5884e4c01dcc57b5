"""The proxy's Prometheus metrics."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Metrics in a separate registry, so that several proxies in one process do not share them."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        labels = ("path", "code", "client")
        self.requests = self._make(Counter, "requests", "HTTP requests", labels)
        self.duration = self._make(Histogram, "request_duration_seconds", "Time to the end of the response", ("path",))
        self.first_token = self._make(
            Histogram, "time_to_first_token_seconds", "Time to the first byte of the response's body", ("path",)
        )
        self.tokens = self._make(Counter, "tokens", "Tokens of prompts and answers", ("model", "kind"))
        self.retries = self._make(Counter, "retries", "Requests that were sent again after a restart of Ollama")
        self.queue = self._make(Gauge, "queue_length", "Requests that are waiting or being answered")
        self.model = self._make(Gauge, "model_info", "Loaded models; the value is always 1", ("model", "digest"))
        self.right = self._make(Gauge, "acceptance_test_right", "Correct answers in the acceptance test", ("model",))
        self.questions = self._make(Gauge, "acceptance_test_questions", "Questions of the acceptance test", ("model",))
        self.ready = self._make(Gauge, "ready", "1 if the pod accepts requests, else 0")

    def count_tokens(self, model: str, answer: Mapping[str, Any]) -> None:
        """Count the tokens that Ollama reports in the last message of an answer."""
        self.tokens.labels(model, "prompt").inc(answer.get("prompt_eval_count") or 0)
        self.tokens.labels(model, "completion").inc(answer.get("eval_count") or 0)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _make(self, kind: type, name: str, about: str, labels: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
        options = {"buckets": SECONDS} if kind is Histogram else {}
        return kind(f"chatmetrics_{name}", about, labels, registry=self._registry, **options)
