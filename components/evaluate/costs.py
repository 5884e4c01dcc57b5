"""What a question costs: from an API that is paid by the token, and on a machine that is paid by the hour."""

from collections.abc import Collection, Mapping
from typing import Self

from pydantic import BaseModel

from chatmetrics.components.evaluate.settings import EvaluateSettings

DAYS = 30  # of the month that costs are counted for
SECONDS_PER_HOUR = 3600


class Cost(BaseModel):
    """One system's: tokens a question, and what they cost from an API.

    `machines` are needed for the queries of a day, if a machine answers `concurrency` questions at a time as fast as
    was measured and around the clock. None where no machine of ours can serve the system: its teacher's API does.
    """

    tokens: float
    api_question: float
    api_month: float
    machines: int | None
    machine_question: float | None
    machine_month: float | None


class Costs(BaseModel):
    """Of all systems that were measured, with the prices that were assumed."""

    api_price: float
    gpu_price: float
    queries_per_day: int
    concurrency: int
    currency: str
    systems: dict[str, Cost]

    @classmethod
    def of(
        cls, measured: Mapping[str, tuple[float, float]], settings: EvaluateSettings, api_only: Collection[str] = ()
    ) -> Self | None:
        """Count the costs; None where nothing was measured.

        Args:
            measured: for each system the tokens of a question with its answer, and the seconds it took.
            settings: the prices.
            api_only: the systems that cost what an API costs, and nothing else.
        """
        if not measured:
            return None
        return cls(
            api_price=settings.api_price,
            gpu_price=settings.gpu_price,
            queries_per_day=settings.queries_per_day,
            concurrency=settings.concurrency,
            currency=settings.currency,
            systems={
                name: _cost(tokens, None if name in api_only else seconds, settings)
                for name, (tokens, seconds) in measured.items()
            },
        )


def _cost(tokens: float, seconds: float | None, settings: EvaluateSettings) -> Cost:
    api_question = tokens * settings.api_price / 1000
    queries = settings.queries_per_day * DAYS
    machines = _machines(seconds, settings) if seconds is not None else None
    machine_month = machines * settings.gpu_price * 24 * DAYS if machines is not None else None
    return Cost(
        tokens=tokens,
        api_question=api_question,
        api_month=api_question * queries,
        machines=machines,
        machine_question=machine_month / queries if machine_month is not None else None,
        machine_month=machine_month,
    )


def _machines(seconds: float, settings: EvaluateSettings) -> int:
    """How many of them answer a day's queries, each of which takes so many seconds."""
    a_day = max(1.0, 24 * SECONDS_PER_HOUR * settings.concurrency / max(seconds, 1e-6))
    return max(1, -int(-settings.queries_per_day // a_day))
