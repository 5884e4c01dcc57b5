"""Cost per question: from an API that is paid per token, and on a machine that is paid per hour."""

from collections.abc import Collection, Mapping
from typing import Self

from pydantic import BaseModel

from chatmetrics.components.evaluate.settings import EvaluateSettings

DAYS = 30  # days per month
SECONDS_PER_HOUR = 3600


class Cost(BaseModel):
    """Cost of one system.

    Attributes:
        tokens: tokens per question and answer.
        api_question: price of a question from an API.
        api_month: price of a month's questions from an API.
        machines: number of machines for the questions of a day, if each answers `concurrency` questions at a time, as
            fast as measured and around the clock. None for a system that is only available from an API.
        machine_question: price of a question on these machines.
        machine_month: price of these machines per month.
    """

    tokens: float
    api_question: float
    api_month: float
    machines: int | None
    machine_question: float | None
    machine_month: float | None


class Costs(BaseModel):
    """Costs of all systems that were measured, and the assumed prices."""

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
        """Calculate the costs; None if nothing was measured.

        Args:
            measured: tokens per question and answer, and seconds per answer, by system.
            settings: the prices.
            api_only: systems that are only available from an API.
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
    """Number of machines for the queries of a day, if each query takes `seconds`."""
    queries_per_machine = max(1.0, 24 * SECONDS_PER_HOUR * settings.concurrency / max(seconds, 1e-6))
    return max(1, -int(-settings.queries_per_day // queries_per_machine))
