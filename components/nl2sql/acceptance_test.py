"""A model's acceptance test: dev questions that it must answer correctly before it receives requests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chatmetrics.components.console import track
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode, Result
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.nl2sql.published_schema import PublishedSchema
from chatmetrics.components.nl2sql.verdict import Execute, StrictVerdict

QUERY_SECONDS = 5.0
# A pod's termination message is limited to 2,048 bytes, and a Chinese character takes three of them.
SUMMARY_CHARACTERS = 600
QUESTION_CHARACTERS = 60
REASON_CHARACTERS = 80

FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


class Question(BaseModel):
    """A question with its gold query and the three parts of its prompt, as in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="Unique id", min_length=1)
    db_id: str = Field(description="Name of the database")
    question: str = Field(description="Text of the question")
    sql: str = Field(description="Gold query")
    system: str = Field(description="Schema text in the prompt; may be empty")
    instruction: str = Field(description="Instruction in the prompt")
    input: str = Field(description="Question in the prompt")


class AcceptanceTest(BaseModel):
    """The questions, their databases, and the share of answers that must be right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(description="Minimum share of right answers", ge=0, le=1)
    max_tokens: int = Field(description="Maximum number of tokens of an answer", ge=1)
    prompt_template: str = Field(DEEPSEEK3.text, description="Template of the prompts, as in the manifest")
    databases: dict[str, FileName] = Field(description="SQLite file in the acceptance test's folder, by database")
    schemas: dict[str, PublishedSchema] = Field(
        {}, description="Schema, by database; of databases on servers, which have no file"
    )
    questions: tuple[Question, ...] = Field(min_length=1)

    @property
    def template(self) -> PromptTemplate:
        """The template of the prompts."""
        return PromptTemplate.parse(self.prompt_template)

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids = [question.id for question in self.questions]
        if repeated := sorted({id for id in ids if ids.count(id) > 1}):
            raise ValueError(f"several questions have the id {repeated[0]!r}")
        known = self.databases.keys() | self.schemas.keys()
        if lacking := sorted({question.db_id for question in self.questions} - known):
            raise ValueError(f"no file is named for the database {lacking[0]!r}")
        return self


class Mistake(NamedTuple):
    """A question that was answered incorrectly. `sql` is empty if the answer contains no SQL."""

    id: str
    question: str
    sql: str
    reason: str


@dataclass(frozen=True, slots=True)
class AcceptanceScore:
    """Result of an acceptance test.

    Attributes:
        total: number of questions.
        threshold: share of answers that must be right.
        wrong: the mistakes.
        answers: the SQL of each answer, by question id.
        by_text: databases that were not available, so that only the text of the SQL was checked.
    """

    total: int
    threshold: float
    wrong: list[Mistake]
    answers: dict[str, str]
    by_text: tuple[str, ...] = ()

    @property
    def right(self) -> int:
        """Number of right answers."""
        return self.total - len(self.wrong)

    @property
    def needed(self) -> int:
        """Smallest number of right answers that reaches the threshold."""
        return next(right for right in range(self.total + 1) if right / self.total >= self.threshold)

    @property
    def passed(self) -> bool:
        """Whether enough answers are right."""
        return self.right >= self.needed

    def summary(self) -> str:
        """The numbers of right and needed answers and the mistakes, in one line of at most 600 characters."""
        line = f"{self.right} of {self.total} right, {self.needed} needed"
        if self.by_text:
            names = _shorten(", ".join(self.by_text), QUESTION_CHARACTERS)
            line += f" (no database, so only the text of the SQL was checked: {names})"
        for number, mistake in enumerate(self.wrong):
            question = _shorten(mistake.question, QUESTION_CHARACTERS)
            reason = _shorten(mistake.reason, REASON_CHARACTERS)
            more = f"{'; wrong:' if number == 0 else ';'} '{question}' -> {reason}"
            rest = f"; and {len(self.wrong) - number} more"
            if len(line) + len(more) + len(rest) > SUMMARY_CHARACTERS:
                return line + rest
            line += more
        return line


def read_acceptance_test(path: Path) -> AcceptanceTest:
    """Read an acceptance test that evaluate wrote. Its databases are opened only when the test runs.

    Raises:
        InputError: the file cannot be read or is not an acceptance test; names the file and the field.
    """
    try:
        return AcceptanceTest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); name an acceptance test that evaluate wrote"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is not an acceptance test: {place + ': ' if place else ''}{first['msg']}") from error


def run_acceptance_test(
    acceptance_test: AcceptanceTest,
    folder: Path,
    answer: Callable[[Question], str],
    threshold: float | None = None,
    served: Mapping[str, Execute] = MappingProxyType({}),
) -> AcceptanceScore:
    """Ask all questions, run the SQL of the answers, and compare it with the gold queries by the strict verdict.

    Of a database on a server that is not among `served`, the text of the SQL is checked: it must parse, only read, and
    use tables and columns of the published schema.

    Args:
        acceptance_test: the questions.
        folder: folder of its databases.
        answer: returns a model's whole answer to a question; called for one question after the other.
        threshold: replaces the acceptance test's own.
        served: run queries on databases on servers, by name.

    Raises:
        InputError: a database is missing, a gold query fails, or the threshold is not between 0 and 1, so that no
            model could pass.
    """
    needed = acceptance_test.threshold if threshold is None else threshold
    if not 0 <= needed <= 1:
        raise InputError(f"acceptance test threshold {needed}: give a share of right answers between 0 and 1")
    wrong: list[Mistake] = []
    answers: dict[str, str] = {}
    with Executor(QUERY_SECONDS) as executor:
        files = {
            db_id: partial(executor.execute_all, folder / file) for db_id, file in acceptance_test.databases.items()
        }
        run: dict[str, Execute] = {**files, **served}
        for question in track(
            acceptance_test.questions, "acceptance test", len(acceptance_test.questions), "questions"
        ):
            execute = run.get(question.db_id)
            gold = _gold(question, execute) if execute else None
            text = answer(question)
            sql = answers[question.id] = sql_from_answer(text)
            if execute and gold:
                reason = _wrong_result(question, sql, text, gold, execute)
            else:
                reason = acceptance_test.schemas[question.db_id].problem(sql) if sql else _no_sql(text)
            if reason:
                wrong.append(Mistake(question.id, question.question, sql, reason))
    by_text = sorted({question.db_id for question in acceptance_test.questions} - run.keys())
    return AcceptanceScore(len(acceptance_test.questions), needed, wrong, answers, tuple(by_text))


def _gold(question: Question, execute: Execute) -> Result:
    gold = execute([question.sql])[0]
    if gold.failure != FailureMode.OK:
        raise InputError(
            f"acceptance test: the gold query of question {question.id!r} fails on the database "
            f"{question.db_id!r} ({gold.failure}: {gold.message}); evaluate and publish the model again"
        )
    return gold


def _wrong_result(question: Question, sql: str, answer: str, gold: Result, execute: Execute) -> str:
    """Why an answer is wrong; "" if it is right."""
    predicted = execute([sql])[0]
    is_right = StrictVerdict(question.question, question.sql, gold, execute).is_right(sql, predicted)
    return "" if is_right else _reason(predicted, answer)


def _reason(predicted: Result, answer: str) -> str:
    """Why an answer is wrong.

    Args:
        predicted: result of the answer's SQL.
        answer: the model's whole answer.
    """
    match predicted.failure:
        case FailureMode.OK:
            return str(FailureMode.WRONG_RESULT)
        case FailureMode.NO_SQL:
            return _no_sql(answer)
        case FailureMode.UNKNOWN_NAME | FailureMode.EXECUTION_ERROR:
            return predicted.message
        case failure:
            return f"{failure}: {predicted.message}"


def _no_sql(answer: str) -> str:
    return f"no SQL in the answer '{_shorten(answer, QUESTION_CHARACTERS)}'"


def _shorten(text: str, characters: int) -> str:
    """The beginning of a text, on one line and without control characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"
