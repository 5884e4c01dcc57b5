"""The form of the answers that a model is trained on: the SQL as given or rewritten, with or without a plan.

`sql_from_answer` turns every form back into SQL, so what asks a model need not know which form it was trained on.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.answers.from_first import from_first
from chatmetrics.components.nl2sql.answers.qualified_names import UnresolvedNameError, qualify
from chatmetrics.components.nl2sql.answers.query_plan import Plan, plan_of
from chatmetrics.components.nl2sql.databases.addresses import SQLITE
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.statements import single_statement
from chatmetrics.components.nl2sql.sqlite_compiler import program_of
from chatmetrics.components.nl2sql.verdict import Execute, StrictVerdict

SqlForm = Literal["as_given", "canonical", "from_first"]


class Kept(StrEnum):
    """Why an answer is the query as given."""

    UNPARSED = "the query cannot be parsed"
    UNRESOLVED = "a name cannot be resolved"
    FAILS = "the query fails"
    OTHER_ROWS = "the rewritten query returns other rows"
    OTHER_PROGRAM = "no rows to compare, and SQLite compiles the rewritten query differently"
    NO_ROWS = "no rows to compare the rewritten query by"
    NOT_READ_BACK = "the SQL is not found in the answer"


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a query is written as an answer."""

    sql: SqlForm = "as_given"
    plan: Plan = "none"

    @property
    def is_as_given(self) -> bool:
        """Whether an answer is the query, unchanged."""
        return self.sql == "as_given" and self.plan == "none"


AS_GIVEN = AnswerForm()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that a model is trained on; `kept` says why it is not in the wanted form, and is None if it is."""

    text: str
    kept: Kept | None = None


def answer_of(sql: str, form: AnswerForm, schema: Schema, execute: Execute | None) -> Answer:
    """Write a query in the form of an answer, if that provably does not change its meaning.

    The rewritten query must return the rows of `sql`, in the same order of columns, by the strict verdict. Where these
    say nothing, because there are none or only NULL and 0, SQLite must compile both to the same program; in another
    dialect the answer is the query as given.

    Args:
        sql: the query, in the dialect of the schema.
        form: the wanted form.
        schema: the whole schema of its database.
        execute: runs queries on the database; None if it has no file.
    """
    if form.is_as_given:
        return Answer(sql)
    try:
        qualified = qualify(sql, schema)
        plan = plan_of(qualified, form.plan, schema.dialect)
    except UnresolvedNameError:
        return Answer(sql, Kept.UNRESOLVED)
    except (SqlglotError, RecursionError):
        return Answer(sql, Kept.UNPARSED)
    if reason := _difference(sql, qualified, schema, execute):
        return Answer(sql, reason)
    query = single_statement(sql).strip() if form.sql == "as_given" else qualified
    text = plan + (from_first(query) if form.sql == "from_first" else query)
    return Answer(text) if sql_from_answer(text) == query else Answer(sql, Kept.NOT_READ_BACK)


def _difference(sql: str, rewritten: str, schema: Schema, execute: Execute | None) -> Kept | None:
    """Why the rewritten query must not replace the query; None if they mean the same."""
    if execute:
        gold, result = execute([sql, rewritten])
        if gold.failure != FailureMode.OK:
            return Kept.FAILS
        if not StrictVerdict("", sql, gold, execute).is_same(rewritten, result):
            return Kept.OTHER_ROWS
        # An aggregate over no rows returns NULL or 0, and so do many wrong queries.
        if any(value for row in gold.rows for value in row):
            return None
    if schema.dialect != SQLITE:
        return Kept.NO_ROWS
    program = program_of(schema, sql)
    if program is None:
        return Kept.FAILS
    return None if program == program_of(schema, rewritten) else Kept.OTHER_PROGRAM
