"""The names in a server's database, against which SQL is checked where the database itself is not available."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field
from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.binding.scopes import Problem, unresolved
from chatmetrics.components.nl2sql.databases.query_check import WRITES
from chatmetrics.components.nl2sql.schema import Column, Schema, Table
from chatmetrics.components.nl2sql.sql.dialect import Dialect
from chatmetrics.components.nl2sql.sql.parsing import parse_new
from chatmetrics.components.redaction import one_line


class PublishedSchema(BaseModel):
    """The tables and columns of a database on a server, as they are published with a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialect: str = Field(description="Dialect of its SQL, as sqlglot names it")
    tables: dict[str, tuple[str, ...]] = Field(description="Columns by table")

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """The names in a schema."""
        return cls(dialect=schema.dialect, tables={table.name: tuple(table.column_names) for table in schema.tables})

    def problem(self, sql: str) -> str:
        """What is wrong with a query as far as its text tells; "" if it parses, only reads, and all names exist.

        Args:
            sql: untrusted text.
        """
        try:
            tree = parse_new(sql, self.dialect)
        except (SqlglotError, RecursionError, UnicodeError) as error:
            return f"does not parse: {one_line(error)}"
        if not isinstance(tree, exp.Query | exp.Values) or tree.find(*WRITES):
            return "refused: not a statement that only reads"
        tables = (Table(name, tuple(Column(column, "") for column in columns)) for name, columns in self.tables.items())
        problems = unresolved(tree, Schema("", tuple(tables), dialect=self.dialect), Dialect(self.dialect))
        return _message(problems[0], self.dialect) if problems else ""


def _message(problem: Problem, dialect: str) -> str:
    name = problem.nodes[0].sql(dialect)
    match problem.kind:
        case "table":
            return f"no such table: {name}"
        case "ambiguous":
            return f"ambiguous column name: {name}"
        case _:
            return f"no such column: {name}"
