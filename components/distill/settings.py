"""The recipe's `distill` section."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from chatmetrics.components.settings import Settings

SCRIPTED = "scripted"
SELF = "self"


class SynthesisSettings(Settings):
    """Questions that the teacher generates for databases that have few or none."""

    questions_per_database: int = Field(0, ge=0, description="New questions for each database; 0 turns synthesis off")
    databases: tuple[str, ...] = Field(
        (), description="Names of the databases; empty means all databases in the dataset's folder"
    )
    languages: tuple[str, ...] = Field(("English",), min_length=1, description="Languages of the questions, in turn")
    query_types: tuple[str, ...] = Field(
        (), description="Query types to cover evenly; empty means all types that evaluate reports"
    )
    questions_per_request: int = Field(5, ge=1, le=50, description="Questions that one request asks for")
    max_similarity: float = Field(
        0.8,
        gt=0,
        le=1,
        description="A question that shares more than this fraction of its words with another is rejected",
    )
    dev_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Fraction of the new questions that become dev questions if the dataset has none",
    )


class DistillSettings(Settings):
    """The teacher, the budget, and which of the teacher's answers the student is trained on.

    The API key is never a setting. It is read from the environment variable named by `api_key_variable`; on a cluster
    that variable is filled from the Kubernetes secret `cluster.teacher_secret`.
    """

    base_url: str = Field(
        "",
        description="Base URL of an OpenAI-compatible endpoint, for example https://api.deepseek.com/v1; empty means "
        "no teacher, 'scripted' starts a built-in server that knows the dataset's answers, for demos and tests, and "
        "with 'self' the student is trained on its own verified answers",
    )
    model: str = Field("", description="The teacher's name at the endpoint, for example deepseek-reasoner")
    api_key_variable: str = Field(
        "TEACHER_API_KEY", min_length=1, description="Environment variable that holds the API key"
    )
    samples: int = Field(4, ge=1, le=100, description="Answers sampled per question, and per round")
    temperatures: tuple[float, ...] = Field((0.6,), min_length=1, description="Sampling temperatures, used in turn")
    max_tokens: int = Field(8192, ge=16, description="Maximum tokens of an answer, including its reasoning")
    seed: int = Field(
        0,
        ge=-1,
        description="Seed of the first sample, sent with the request; later samples count up; -1 sends no seed",
    )
    options: dict[str, str | int | float | bool] = Field(
        {}, description="Additional fields of the request body, for example {top_p: 0.95}"
    )
    schema_form: Literal["ddl", "m-schema"] = Field(
        "m-schema",
        alias="schema",
        description="How the teacher's prompt shows the schema; independent of the student's",
    )
    sample_values: int = Field(3, ge=0, le=20, description="Sample values per column in the teacher's schema")
    schema_tokens: int = Field(
        8000,
        ge=1,
        description="Maximum tokens of the teacher's schema, counted by the student's tokenizer; of a longer one, the "
        "part that the question is about is shown",
    )

    stream: bool = Field(True, description="Stream answers, so that proxies do not time out on long ones")
    concurrency: int = Field(16, ge=1, le=512, description="Maximum number of concurrent requests")
    request_seconds: float = Field(
        600.0, gt=0, description="Time limit of one request, from sending it to the last token"
    )
    attempts: int = Field(6, ge=1, description="Attempts per request before it counts as unanswered in this run")
    backoff_seconds: float = Field(
        1.0, gt=0, description="Wait before the second attempt; it doubles with each further attempt"
    )
    max_backoff_seconds: float = Field(
        60.0, gt=0, description="Maximum wait between attempts, unless the teacher's Retry-After is longer"
    )

    budget: float = Field(
        0.0, ge=0, description="Maximum cost over all runs that share a ledger (the recipe's name); 0 means no cap"
    )
    budget_tokens: int = Field(0, ge=0, description="Maximum tokens over all runs that share a ledger; 0 means no cap")
    prompt_price: float = Field(0.5, ge=0, description="Price per 1,000 prompt tokens")
    completion_price: float = Field(0.5, ge=0, description="Price per 1,000 completion tokens")
    currency: str = Field("¥", max_length=4, description="Currency of prices and budget")
    max_unanswered: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Maximum fraction of this run's requests without an answer; above it the step fails",
    )
    at_cap: Literal["continue", "fail"] = Field(
        "continue", description="When a cap is reached, continue with the answers received so far, or fail"
    )

    unlabeled_questions: str = Field(
        "",
        description="JSON, JSONL or CSV file of questions without SQL (fields question, db_id and optionally id) for "
        "the teacher to answer; a path or an s3:// URI",
    )
    synthesis: SynthesisSettings = SynthesisSettings()

    verification: Literal["execution", "none"] = Field(
        "execution", description="Keep only samples whose SQL returns the expected result, or keep all of them (none)"
    )
    bind_names: bool = Field(
        False,
        description="Whether wrong names in a sample's SQL are repaired before it is verified; it is then trained on "
        "without its reasoning. Needs verification by execution",
    )
    min_agreement: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Fraction of a question's samples that must return the same result if there is no gold SQL",
    )
    allow_empty: bool = Field(
        False, description="Also accept gold queries, majorities and generated queries that return no rows"
    )
    query_seconds: float = Field(5.0, gt=0, le=600, description="Time limit of one query")
    keep_samples: int = Field(1, ge=1, description="Maximum samples per question that are trained on")
    gold: Literal["fallback", "add", "never"] = Field(
        "fallback",
        description="Train on gold SQL if no sample of the question passes (fallback), in addition to the samples "
        "(add), or never",
    )
    only_unsure: bool = Field(
        False,
        description="Whether samples are trained on only for questions of which some pass and others do not; `gold` "
        "decides what is trained on for the others",
    )
    train_on: Literal["sql", "reasoning", "mixture"] = Field(
        "sql", description="What the student is trained to answer: SQL, reasoning and SQL, or a mixture of both"
    )
    reasoning_share: float = Field(
        0.5, ge=0, le=1, description="Fraction of a mixture that is trained on with the teacher's reasoning"
    )
    max_reasoning_tokens: int = Field(
        1024, ge=1, description="Maximum tokens of an answer with reasoning; a longer one is trained on as SQL only"
    )

    score_teacher: bool = Field(True, description="Also ask the teacher the dev questions once, for the report")
    rounds: int = Field(
        1,
        ge=1,
        le=10,
        description="Rounds of distillation and training; later rounds ask where the student fails. With base_url "
        "'self', a student is trained on the gold SQL before the first round",
    )
    round_questions: int = Field(
        2000,
        ge=0,
        description="Maximum number of training questions that the student is asked between two rounds, spread evenly; "
        "0 asks all",
    )
    first_round: Literal["all", "unlabeled"] = Field(
        "all",
        description="Questions that the first round asks: all, or only those without gold SQL; the others are then "
        "asked once the student has failed them",
    )
    min_student_agreement: float = Field(
        0.75,
        ge=0,
        le=1,
        description="A later round also asks the questions on which the student's sampled answers agree less than this",
    )
    sampled_answers: int = Field(
        4, ge=0, le=20, description="Answers sampled from the student per question, to measure how much they agree"
    )
    dry_run_questions: int = Field(
        5, ge=1, description="Questions that a dry run asks in order to estimate the total cost"
    )

    scripted_error_rate: float = Field(
        0.2, ge=0, le=1, description="Fraction of the scripted teacher's answers that are wrong"
    )

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, base_url: str) -> str:
        """Refuse an address that no request can be sent to."""
        try:
            is_address = urlsplit(base_url).scheme in ("http", "https") and bool(urlsplit(base_url).hostname)
        except ValueError:
            is_address = False
        if base_url not in ("", SCRIPTED, SELF) and not is_address:
            raise ValueError(f"write http://HOST/v1, https://HOST/v1, {SCRIPTED} or {SELF}")
        return base_url

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.is_remote and not self.model:
            raise ValueError("model is missing: give the teacher's name at the endpoint")
        if not self.base_url and (self.synthesis.questions_per_database or self.unlabeled_questions):
            raise ValueError("base_url is missing: questions without SQL need a teacher")
        if self.bind_names and self.verification == "none":
            raise ValueError("bind_names needs verification by execution: many repaired queries are wrong")
        if self.is_self:
            self._check_self()
        return self

    def _check_self(self) -> None:
        """Refuse what a student cannot teach itself."""
        if self.synthesis.questions_per_database or self.unlabeled_questions:
            raise ValueError("base_url is self, but questions without SQL need a teacher: give its address")
        if self.train_on != "sql":
            raise ValueError(f"base_url is self, but train_on is {self.train_on}: a student's answers are SQL only")
        if self.verification == "none":
            raise ValueError("base_url is self, which needs verification by execution: the student knows its answers")

    @property
    def enabled(self) -> bool:
        """Whether a teacher is configured."""
        return bool(self.base_url)

    @property
    def is_scripted(self) -> bool:
        """Whether the teacher is the built-in scripted server."""
        return self.base_url == SCRIPTED

    @property
    def is_self(self) -> bool:
        """Whether the student is trained on its own answers."""
        return self.base_url == SELF

    @property
    def is_remote(self) -> bool:
        """Whether the teacher is a server outside of the step, whose answers cost money."""
        return self.enabled and not self.is_scripted and not self.is_self

    @property
    def scores_teacher(self) -> bool:
        """Whether the teacher is asked the dev questions; a student is scored anyway."""
        return self.enabled and self.score_teacher and not self.is_self

    @property
    def students(self) -> int:
        """How many students are trained, each with the answers of the round before; 0 without distillation."""
        return self.rounds + self.is_self if self.enabled else 0
