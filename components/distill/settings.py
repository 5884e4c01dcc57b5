"""The recipe's `distill` section."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from chatmetrics.components.settings import Settings

SCRIPTED = "scripted"


class SynthesisSettings(Settings):
    """Questions that the teacher makes up about databases for which there are too few, or none."""

    questions_per_database: int = Field(0, ge=0, description="new questions for each database; 0 makes none up")
    databases: tuple[str, ...] = Field((), description="names of the databases; empty: all of the dataset's folder")
    languages: tuple[str, ...] = Field(("English",), min_length=1, description="of the questions, in turn")
    query_types: tuple[str, ...] = Field((), description="kinds of query, evenly; empty: all that evaluate reports by")
    questions_per_request: int = Field(5, ge=1, le=50, description="asked for at once")
    max_similarity: float = Field(
        0.8, gt=0, le=1, description="two questions that share more of their words than this count as one"
    )
    dev_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of them that is held out where the dataset has no dev questions"
    )


class DistillSettings(Settings):
    """Whom to ask, how much that may cost, and which answers the student learns from.

    The key is never here: it comes from the environment variable that `api_key_variable` names, which on a cluster is
    filled from the Kubernetes secret of `cluster.teacher_secret`.
    """

    base_url: str = Field(
        "",
        description="of an endpoint that speaks OpenAI's protocol, https://api.deepseek.com/v1; empty: no teacher; "
        "'scripted': a server of our own that knows the dataset's answers, for demos and tests",
    )
    model: str = Field("", description="the teacher's name there, for example deepseek-reasoner")
    api_key_variable: str = Field("TEACHER_API_KEY", min_length=1, description="environment variable with the key")
    samples: int = Field(4, ge=1, le=100, description="answers to a question")
    temperatures: tuple[float, ...] = Field((0.6,), min_length=1, description="of the samples, in turn")
    max_tokens: int = Field(8192, ge=16, description="most tokens of an answer, its reasoning included")
    seed: int = Field(0, ge=-1, description="sent with a sample as seed plus its number; -1 sends none")
    options: dict[str, str | int | float | bool] = Field({}, description="further fields of a request: {top_p: 0.95}")
    schema_form: Literal["ddl", "m-schema"] = Field(
        "m-schema", alias="schema", description="how the teacher is shown the schema, whatever the student sees"
    )
    sample_values: int = Field(3, ge=0, le=20, description="values of each column shown with it")

    stream: bool = Field(True, description="take answers piece by piece, so that long ones do not time out on the way")
    concurrency: int = Field(16, ge=1, le=512, description="requests at the same time")
    request_seconds: float = Field(600.0, gt=0, description="for one request, from sending it to its last token")
    attempts: int = Field(6, ge=1, description="times that a request is sent before it is given up for this run")
    backoff_seconds: float = Field(1.0, gt=0, description="before the second attempt; doubled for each further one")
    max_backoff_seconds: float = Field(60.0, gt=0, description="the wait is never longer, unless the teacher says")

    budget: float = Field(0.0, ge=0, description="most money for this recipe's name, over all runs; 0: no cap")
    budget_tokens: int = Field(0, ge=0, description="most tokens, likewise; 0: no cap")
    prompt_price: float = Field(0.5, ge=0, description="of a thousand tokens that are sent")
    completion_price: float = Field(0.5, ge=0, description="of a thousand tokens that are answered")
    currency: str = Field("¥", max_length=4, description="of prices and budget")
    max_unanswered: float = Field(
        0.02, ge=0, le=1, description="share of the requests that may stay without an answer; more is an error"
    )
    at_cap: Literal["continue", "fail"] = Field("continue", description="with what was answered by then, or not at all")

    unlabeled_questions: str = Field(
        "", description="JSONL or CSV of questions without SQL (question, db_id, perhaps id), for the teacher to answer"
    )
    synthesis: SynthesisSettings = SynthesisSettings()

    verification: Literal["execution", "none"] = Field(
        "execution", description="keep samples that return what they should; none keeps whatever was answered"
    )
    min_agreement: float = Field(
        0.6, gt=0, le=1, description="share of a question's samples that must return the same where there is no gold"
    )
    allow_empty: bool = Field(False, description="take a majority for no rows as an answer too")
    query_seconds: float = Field(5.0, gt=0, le=600, description="seconds that one query may take")
    keep_samples: int = Field(1, ge=1, description="most samples of a question that are trained on")
    gold: Literal["fallback", "add", "never"] = Field(
        "fallback",
        description="when gold SQL is trained on: where no sample passes, always beside the samples, or never",
    )
    train_on: Literal["sql", "reasoning", "mixture"] = Field("sql", description="what the student learns to answer")
    reasoning_share: float = Field(0.5, ge=0, le=1, description="of a mixture that has the teacher's reasoning")
    max_reasoning_tokens: int = Field(
        1024, ge=1, description="most tokens of an answer with reasoning; a longer one is trained on as SQL only"
    )

    score_teacher: bool = Field(True, description="ask it the dev questions once, for the report")
    rounds: int = Field(
        1, ge=1, le=10, description="of distilling and training; from the second on where the student fails"
    )
    first_round: Literal["all", "unlabeled"] = Field(
        "all", description="which questions the first round asks; without gold: others only once the student has failed"
    )
    min_student_agreement: float = Field(
        0.75, ge=0, le=1, description="a student whose sampled answers agree less than this counts as failing"
    )
    sampled_answers: int = Field(4, ge=0, le=20, description="sampled answers of the student that tell how sure it is")
    dry_run_questions: int = Field(5, ge=1, description="asked by a dry run, which estimates the cost of all")

    scripted_error_rate: float = Field(0.2, ge=0, le=1, description="of the scripted teacher's answers")

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, base_url: str) -> str:
        """Refuse what no request can be sent to."""
        try:
            is_address = urlsplit(base_url).scheme in ("http", "https") and bool(urlsplit(base_url).hostname)
        except ValueError:
            is_address = False
        if base_url not in ("", SCRIPTED) and not is_address:
            raise ValueError(f"write http://HOST/v1, https://HOST/v1, or {SCRIPTED}")
        return base_url

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.base_url and not self.model and not self.is_scripted:
            raise ValueError("model is missing: name the teacher as the endpoint knows it")
        if not self.base_url and (self.synthesis.questions_per_database or self.unlabeled_questions):
            raise ValueError("base_url is missing: questions without SQL need a teacher")
        return self

    @property
    def enabled(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.base_url)

    @property
    def is_scripted(self) -> bool:
        """Whether the teacher is our own server, which knows the answers."""
        return self.base_url == SCRIPTED
