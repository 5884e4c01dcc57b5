"""The recipe's `evaluate` section."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.settings import Settings


class EvaluateSettings(Settings):
    """How the models are asked and when the student is good enough."""

    verdict: Literal["strict", "official"] = Field(
        "strict", description="what accuracy, comparisons and the gate count; the report has both"
    )
    gate: float = Field(0.0, ge=0, le=1, description="least execution accuracy of the student; 0 is no gate")
    gate_split: str = Field("", description="split that the gate is about, for example 'unseen value'; empty: all")
    gate_teacher: float | None = Field(
        None,
        ge=0,
        le=1,
        description="most points, as a share from 0 to 1, that the student may be below its teacher; empty: not asked",
    )
    questions: Literal["dev", "train"] = Field(
        "dev",
        description="which file of the dataset is asked; train: for what the student has yet to learn, without gate, "
        "acceptance test and teacher",
    )
    limit: int = Field(0, ge=0, description="most questions to ask, spread evenly over the dataset; 0 asks all")
    sample: str = Field(
        "",
        pattern=r"^([\w -]+:[1-9]\d*)?$",
        description="draw so many questions of a kind: complex:100; a kind is all, complex, a query type or a level",
    )
    seed: int = Field(0, ge=0, description="decides what `sample` draws")
    acceptance_test_questions: int = Field(
        10, ge=0, le=1000, description="held-out questions that go along with the model as its acceptance test"
    )
    acceptance_test_threshold: float = Field(
        0.5, ge=0, le=1, description="least share of them that it must answer before it is served; strict verdict"
    )
    score_base: bool = Field(True, description="also ask the base model, the same questions")
    sampled_answers: int = Field(
        0, ge=0, le=20, description="further, sampled answers of the student to each question, for items' `agreement`"
    )
    sampling_temperature: float = Field(0.7, gt=0, le=2, description="of these; their seeds are 1, 2, ...")
    max_tokens: int = Field(256, ge=1, description="most tokens of an answer")
    concurrency: int = Field(4, ge=1, le=64, description="requests at the same time; each takes a context's memory")
    context_length: int = Field(2048, ge=64, description="tokens of prompt and answer together; at least the cutoff")
    query_seconds: float = Field(5.0, gt=0, le=600, description="seconds that one query may take")
    api_price: float = Field(0.5, ge=0, description="of a thousand tokens from an API, for the table of costs")
    gpu_price: float = Field(10.0, ge=0, description="of an hour of the machine that serves the student")
    queries_per_day: int = Field(100_000, ge=1, description="what a month's cost is counted for")
    currency: str = Field("¥", max_length=4, description="of the two prices")
