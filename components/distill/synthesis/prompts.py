"""Prompts that ask the teacher to generate questions with SQL."""

from collections.abc import Mapping, Sequence

from chatmetrics.components.distill.prompts import Messages
from chatmetrics.components.distill.synthesis.question_plan import Cell
from chatmetrics.components.nl2sql.databases.addresses import SQLITE, title
from chatmetrics.components.nl2sql.identifiers import identifier

_GENERATE = """Above is the schema of the {kind} database '{db_id}', with values that are stored in it. You make up
questions that the people who work with this database would ask, each with the query that answers it.
- A question is in plain words and never speaks of tables, columns or SQL. It says all that the query needs, such as the
  values that it filters by, and asks for just the columns that the query selects, in the same order.
- A query is one SELECT statement in {kind}'s dialect, uses only tables and columns of the schema, spelled as they are
  there, and returns at least one row on values like those in the schema.
- Vary what is asked and how it is worded.
Answer with a JSON list and nothing else: [{{"question": "...", "sql": "..."}}, ...]"""

# Descriptions of the query types, equivalent to the rules of nl2sql/sql/query_type.py.
_DESCRIPTIONS = {
    "single table": "reads one table, without aggregate functions, GROUP BY or subqueries",
    "2-3 table join": "joins two or three tables, without subqueries, window functions or set operations",
    "larger join": "joins four or more tables, without subqueries, window functions or set operations",
    "subquery": "has a SELECT inside another one, or a common table expression",
    "aggregate": "uses aggregate functions, perhaps with GROUP BY and HAVING, on a single table without subqueries",
    "window function": "uses a window function with OVER",
    "set operation": "combines two SELECTs by UNION, INTERSECT or EXCEPT",
}


def synthesis_messages(
    db_id: str, schema: str, cells: Sequence[Cell], earlier: Sequence[str], dialect: str = SQLITE
) -> Messages:
    """Build the messages that ask for one question per cell.

    Args:
        db_id: name of the database.
        schema: the schema text with sample values, from `Schema.render`, and the terms of the business.
        cells: at least one cell, all with the same query type and language.
        earlier: questions that must not be repeated.
        dialect: the database's, as sqlglot names it.
    """
    first = cells[0]
    lines = [
        f"Make up {len(cells)} questions with their SQL.",
        f"Language of the questions: {first.language}",
        f"Kind of query: {first.query_type}: each {_DESCRIPTIONS[first.query_type]}.",
        *(f"{number}. {_topic(cell, dialect)}" for number, cell in enumerate(cells, start=1)),
    ]
    if earlier:
        lines += ["Do not ask these again, nor anything close to them:", *(f"- {question}" for question in earlier)]
    wanted = _GENERATE.format(db_id=db_id, kind=title(dialect))
    return ("system", f"{schema}\n\n{wanted}"), ("user", "\n".join(lines))


def terms_text(terms: Mapping[str, str]) -> str:
    """The terms of a business in a prompt, with what they mean; "" if there are none."""
    lines = [f"- {term}: {text}" for term, text in terms.items()]
    return "\n".join(["Terms of the business:", *lines]) if lines else ""


def _topic(cell: Cell, dialect: str) -> str:
    keys = f", joined by {', '.join(map(str, cell.foreign_keys))}" if cell.foreign_keys else ""
    return f"about {', '.join(identifier(name, dialect) for name in cell.tables)}{keys}"
