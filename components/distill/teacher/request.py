"""What a teacher is asked and what it answered."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from chatmetrics.components.distill.settings import DistillSettings


@dataclass(frozen=True, slots=True)
class Request:
    """One sample of an answer to one conversation.

    Attributes:
        messages: role and content of each, in order.
        sample: its number among the samples of the same conversation, from 0.
        temperature: of this sample.
        max_tokens: most tokens of the answer.
        purpose: what it is for, to be told apart in the ledger: "question", "score", "synthesis".
    """

    messages: tuple[tuple[str, str], ...]
    sample: int
    temperature: float
    max_tokens: int
    purpose: str = "question"

    def body(self, settings: DistillSettings) -> dict[str, Any]:
        """The fields of the HTTP request, but for those about streaming."""
        body: dict[str, Any] = {
            **settings.options,
            "model": settings.model or settings.base_url,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        return body if settings.seed < 0 else {**body, "seed": settings.seed + self.sample}

    def key(self, settings: DistillSettings) -> str:
        """A hash of all that decides the answer: endpoint, model, messages, options, and which sample it is."""
        decisive: list[Any] = [settings.base_url, self.body(settings), self.sample]
        if settings.is_scripted:
            decisive.append(settings.scripted_error_rate)
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """What the teacher wrote.

    Attributes:
        text: the answer, without the reasoning where the endpoint gave that apart.
        reasoning: what the endpoint gave as reasoning_content, or the text had between <think> tags; may be empty.
        prompt_tokens: as the endpoint counted them.
        completion_tokens: likewise, reasoning included.
        is_cut: whether it reached max_tokens.
        seconds: from sending the request to the last token.
        first_token: seconds to the first one.
    """

    text: str
    reasoning: str
    prompt_tokens: int
    completion_tokens: int
    is_cut: bool
    seconds: float
    first_token: float

    def record(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return asdict(self)
