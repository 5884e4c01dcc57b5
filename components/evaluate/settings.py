"""The recipe's `evaluate` section."""

from typing import Literal, Self

from pydantic import Field, model_validator

from chatmetrics.components.settings import Settings


class EvaluateSettings(Settings):
    """How the models are asked, and the gate that the student must pass."""

    verdict: Literal["strict", "official", "bird"] = Field(
        "strict",
        description="Verdict of accuracy, comparisons and the gate: the strict one, Spider's official one, or BIRD's "
        "execution accuracy; the report always shows all",
    )
    gate: float = Field(0.0, ge=0, le=1, description="Minimum execution accuracy of the student; 0 for no gate")
    gate_split: str = Field(
        "", description="Split whose questions the gate counts, for example 'unseen value'; empty counts all questions"
    )
    gate_teacher: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How far the student's accuracy may be below its teacher's, from 0 to 1; 0.05 is five points. "
        "Empty for no limit",
    )
    gate_scored: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Minimum share of the gate's questions that must be scored. Those are not whose gold query fails, "
        "whose database is missing or broken, or that preprocess dropped",
    )
    bind_names: bool = Field(
        False,
        description="Whether an answer counts with its names bound to the schema, as `ask` runs it: in accuracy, "
        "comparisons and the gate. The report always shows both",
    )
    answer: Literal["greedy", "vote"] = Field(
        "greedy",
        description="Answer that counts: the greedy one, or the one whose result most of it and the `sampled_answers` "
        "return, with names bound. The report shows both if there are sampled answers",
    )
    questions: Literal["dev", "train"] = Field(
        "dev",
        description="File of the dataset whose questions are asked. 'train' finds what the student has not learned "
        "yet; it has no gate, acceptance test or teacher",
    )
    limit: int = Field(0, ge=0, description="Maximum number of questions, spread evenly over the dataset; 0 asks all")
    sample: str = Field(
        "",
        pattern=r"^([\w -]+:[1-9]\d*)?$",
        description="Number of questions of one kind to draw, for example complex:100. The kind is all, complex, "
        "a query type or a hardness level; empty asks all",
    )
    seed: int = Field(0, ge=0, description="Seed of `sample` and `few_shot_choice`")
    few_shot: int = Field(
        0,
        ge=0,
        le=20,
        description="Number of training questions that prompts show with their gold SQL, between schema and question; "
        "fewer where more do not fit the context",
    )
    few_shot_for: Literal["base", "student", "both"] = Field(
        "base",
        description="Models with few-shot prompts. Served models have none, so with student or both there is no gate "
        "and no acceptance test",
    )
    few_shot_choice: Literal["random", "similar"] = Field(
        "random",
        description="How `few_shot` questions are chosen: the same random ones for all questions, or those with the "
        "most words in common",
    )
    acceptance_test_questions: int = Field(
        10,
        ge=0,
        le=1000,
        description="Number of dev questions in the acceptance test, which is published with the student and its "
        "databases; 0 for no acceptance test",
    )
    acceptance_test_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Minimum share of right answers in the acceptance test, by the strict verdict, before the student "
        "is served",
    )
    score_base: bool = Field(True, description="Also score the base model, on the same questions")
    base_limit: int = Field(
        0,
        ge=0,
        description="Maximum number of questions that the base model is asked, spread evenly over the student's; "
        "0 asks all",
    )
    repair_attempts: int = Field(
        0,
        ge=0,
        le=1,
        description="How often a model is asked again, with the database's error message, if its greedy answer "
        "fails to run",
    )
    sampled_answers: int = Field(
        0,
        ge=0,
        le=20,
        description="Number of sampled answers of the student to each question, in addition to the greedy one, for "
        "the items' `agreement` and the vote",
    )
    sampling_temperature: float = Field(
        0.7, gt=0, le=2, description="Temperature of sampled answers; their seeds are 1, 2, ..."
    )
    sampling_min_p: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Least probability of a sampled token, as a share of the most likely one's; 0 is off. A vote of a "
        "small model does best at a high temperature, such as 1.3, with 0.02",
    )
    grammar: Literal["none", "names"] = Field(
        "none",
        description="Restriction of what student and base can write: 'names' permits only queries with the names of "
        "the question's schema. Ollama has no such restriction, so there is no gate and no acceptance test",
    )
    max_tokens: int = Field(256, ge=1, description="Maximum number of tokens of an answer")
    concurrency: int = Field(
        4, ge=1, le=64, description="Number of requests at the same time; each takes the memory of a context"
    )
    context_length: int = Field(
        2048, ge=64, description="Tokens of prompt and answer together; at least the training's cutoff length"
    )
    query_seconds: float = Field(5.0, gt=0, le=600, description="Time limit of an SQL query in seconds")
    api_price: float = Field(
        0.5, ge=0, description="Price of a thousand tokens from an API, for the report's table of costs"
    )
    gpu_price: float = Field(
        10.0, ge=0, description="Price per hour of the machine that serves the student, for the table of costs"
    )
    queries_per_day: int = Field(100_000, ge=1, description="Queries per day, for the table of costs")
    currency: str = Field("¥", max_length=4, description="Currency symbol of the prices")

    @model_validator(mode="after")
    def _vote_has_answers(self) -> Self:
        if self.answer == "vote" and not self.sampled_answers:
            raise ValueError("answer is vote, but sampled_answers is 0: set it, for example to 8")
        return self
