"""A request to a teacher, and its answer."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from chatmetrics.components.distill.settings import DistillSettings


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one sample.

    Attributes:
        messages: role and content of each message, in order.
        sample: number of the sample among those of the same messages, from 0.
        temperature: sampling temperature.
        max_tokens: maximum tokens of the answer.
        purpose: shown in the ledger: "question", "score" or "synthesis".
    """

    messages: tuple[tuple[str, str], ...]
    sample: int
    temperature: float
    max_tokens: int
    purpose: str = "question"

    def body(self, settings: DistillSettings) -> dict[str, Any]:
        """The body of the HTTP request, without the fields about streaming."""
        body: dict[str, Any] = {
            **settings.options,
            "model": settings.model or settings.base_url,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        return body if settings.seed < 0 else {**body, "seed": settings.seed + self.sample}

    def key(self, settings: DistillSettings) -> str:
        """A hash of everything that affects the answer: endpoint, model, messages, options and sample number."""
        decisive: list[Any] = [settings.base_url, self.body(settings), self.sample]
        if settings.is_scripted:
            decisive.append(settings.scripted_error_rate)
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """The teacher's answer to one request.

    Attributes:
        text: the answer without its reasoning.
        reasoning: the endpoint's reasoning field, or the text between <think> tags; may be empty.
        prompt_tokens: prompt tokens, as the endpoint counted them.
        completion_tokens: completion tokens including reasoning, as the endpoint counted them.
        is_cut: whether the answer was cut off at `max_tokens`.
        seconds: time from sending the request to the last token.
        first_token: time from sending the request to the first token, in seconds.
    """

    text: str
    reasoning: str
    prompt_tokens: int
    completion_tokens: int
    is_cut: bool
    seconds: float
    first_token: float

    def record(self) -> dict[str, Any]:
        """The answer as a dict, for the ledger."""
        return asdict(self)
