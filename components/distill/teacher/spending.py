"""The cost of one request, and of all requests to a teacher."""

from dataclasses import dataclass

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class TeacherUsage:
    """Tokens and cost of one request."""

    prompt_tokens: int
    completion_tokens: int
    cost: float

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


class Spending(BaseModel):
    """Requests and cost so far, over all runs.

    Attributes:
        requests: requests sent.
        answered: requests with an answer.
        failed: requests that were refused or failed.
        unknown: requests whose outcome is unknown because the process that sent them died; they count at their
            maximum cost.
        prompt_tokens: total prompt tokens.
        completion_tokens: total completion tokens.
        cost: total cost.
        currency: currency of the cost.
        budget: cap on the cost; 0 means no cap.
        budget_tokens: cap on all tokens; 0 means no cap.
        cost_by_purpose: cost by `Request.purpose`.
    """

    requests: int
    answered: int
    failed: int
    unknown: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    currency: str
    budget: float
    budget_tokens: int
    cost_by_purpose: dict[str, float]

    @property
    def sentence(self) -> str:
        """Requests, tokens and cost as text."""
        tokens = f"{self.prompt_tokens:,} tokens sent and {self.completion_tokens:,} received"
        cap = f" of {self.currency}{self.budget:,.2f}" if self.budget else ""
        return f"{self.requests} requests, {tokens}, {self.currency}{self.cost:,.2f}{cap} spent"
