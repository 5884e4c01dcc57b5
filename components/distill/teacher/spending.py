"""What requests to a teacher cost: one of them, and all together."""

from dataclasses import dataclass

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class TeacherUsage:
    """Tokens of a request, and their price."""

    prompt_tokens: int
    completion_tokens: int
    cost: float

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.prompt_tokens + self.completion_tokens


class Spending(BaseModel):
    """What was asked and paid so far, over all runs.

    Attributes:
        requests: that were sent.
        answered: those with an answer.
        failed: those that were refused or broke off.
        unknown: those of which nothing is known, because whoever sent them died; they count as dear as they can be.
        prompt_tokens: in all.
        completion_tokens: in all.
        cost: in all.
        currency: of `cost`.
        budget: cap on `cost`; 0 is none.
        budget_tokens: cap on all tokens; 0 is none.
        cost_by_purpose: of what it was spent for.
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
        """The numbers in words."""
        tokens = f"{self.prompt_tokens:,} tokens sent and {self.completion_tokens:,} received"
        cap = f" of {self.currency}{self.budget:,.2f}" if self.budget else ""
        return f"{self.requests} requests, {tokens}, {self.currency}{self.cost:,.2f}{cap} spent"
