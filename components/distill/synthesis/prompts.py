"""What the teacher is told to make it write new questions with their SQL."""

from collections.abc import Sequence

from chatmetrics.components.distill.prompts import Messages
from chatmetrics.components.distill.synthesis.question_plan import Cell

_MAKE_UP = """Above is the schema of the SQLite database '{db_id}', with values that are stored in it. You make up
questions that the people who work with this database would ask, each with the query that answers it.
- A question is in plain words and never speaks of tables, columns or SQL. It says all that the query needs, such as the
  values that it filters by, and asks for just the columns that the query selects, in the same order.
- A query is one SELECT statement in SQLite's dialect, uses only tables and columns of the schema, spelled as they are
  there, and returns at least one row on values like those in the schema.
- Vary what is asked and how it is worded.
TeacherAnswer with a JSON list and nothing else: [{{"question": "...", "sql": "..."}}, ...]"""

# What a query must be like to count as one of nl2sql.query type's.
_KINDS = {
    "single table": "reads one table, without aggregate functions, GROUP BY or subqueries",
    "2-3 table join": "joins two or three tables, without subqueries, window functions or set operations",
    "larger join": "joins four or more tables, without subqueries, window functions or set operations",
    "subquery": "has a SELECT inside another one, or a common table expression",
    "aggregate": "uses aggregate functions, perhaps with GROUP BY and HAVING, on a single table without subqueries",
    "window function": "uses a window function with OVER",
    "set operation": "combines two SELECTs by UNION, INTERSECT or EXCEPT",
}


def synthesis_messages(db_id: str, schema: str, cells: Sequence[Cell], earlier: Sequence[str]) -> Messages:
    """The conversation in which a question is made up for each cell.

    Args:
        db_id: name of the database.
        schema: as `Schema.render` gives it, with sample values.
        cells: at least one, all of the same query type and language.
        earlier: questions that are not to be asked again.
    """
    first = cells[0]
    lines = [
        f"Make up {len(cells)} questions with their SQL.",
        f"Language of the questions: {first.language}",
        f"Kind of query: {first.query_type}: each {_KINDS[first.query_type]}.",
        *(f"{number}. {_about(cell)}" for number, cell in enumerate(cells, start=1)),
    ]
    if earlier:
        lines += ["Do not ask these again, nor anything close to them:", *(f"- {question}" for question in earlier)]
    return ("system", f"{schema}\n\n{_MAKE_UP.format(db_id=db_id)}"), ("user", "\n".join(lines))


def _about(cell: Cell) -> str:
    keys = f", joined by {', '.join(map(str, cell.foreign_keys))}" if cell.foreign_keys else ""
    return f"about {', '.join(cell.tables)}{keys}"
