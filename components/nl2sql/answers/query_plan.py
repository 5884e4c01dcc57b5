"""A short plan in the lines before a query, derived from the query by rule: `preprocess.plan`.

Tables: singer, concert
Joins: singer.id = concert.singer_id
Conditions: concert.year > 2014; singer.id IN (...)
SELECT singer.name FROM singer JOIN concert ON ...
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

from sqlglot import exp

from chatmetrics.components.nl2sql.answers.qualified_names import spell
from chatmetrics.components.nl2sql.sql.dialect import Dialect
from chatmetrics.components.nl2sql.sql.parsing import parse_new

Plan = Literal["none", "tables", "conditions"]

SUBQUERY = "..."
_PLAN = re.compile(r"\A\s*+Tables: [^\n]*+\n(?:(?:Joins|Conditions): [^\n]*+\n)*+")


def plan_of(sql: str, plan: Plan, dialect: str = "sqlite") -> str:
    """The plan of a query, one line for each kind of part that it has, each with its line break.

    Args:
        sql: the query; the plan has its names, so it should be qualified.
        plan: "tables" for the tables and joins, "conditions" for these and the conditions of WHERE and HAVING. A
            subquery is shown as (...); its own parts are in the lines too.
        dialect: the query's dialect, as sqlglot names it.

    Returns:
        The empty string for "none", and for a query without tables.

    Raises:
        SqlglotError: the query cannot be parsed.
        RecursionError: the query is nested too deeply.
    """
    if plan == "none":
        return ""
    tree = parse_new(sql, dialect)
    common = {table.alias.lower() for table in tree.find_all(exp.CTE)}
    tables = [table for table in tree.find_all(exp.Table, bfs=False) if table.name.lower() not in common]
    text = partial(_text, dialect=Dialect(dialect))
    lines = [("Tables", [text(table) for table in tables])]
    lines.append(("Joins", [_join(join, text) for join in tree.find_all(exp.Join, bfs=False)]))
    if plan == "conditions":
        clauses = tree.find_all(exp.Where, exp.Having, bfs=False)
        lines.append(("Conditions", [text(part) for clause in clauses for part in _conjuncts(clause.this)]))
    return "".join(_line(name, parts) for name, parts in lines) if tables else ""


def without_plan(answer: str) -> str:
    """An answer without the plan that it begins with."""
    return _PLAN.sub("", answer)


def _line(name: str, parts: Iterable[str]) -> str:
    distinct = dict.fromkeys(filter(None, parts))
    separator = ", " if name == "Tables" else "; "
    return f"{name}: {separator.join(distinct)}\n" if distinct else ""


def _join(join: exp.Join, text: Callable[[exp.Expr], str]) -> str:
    """The condition of a join; empty if it has none, or if its condition is in WHERE."""
    if using := join.args.get("using"):
        return f"USING ({', '.join(text(name) for name in using)})"
    condition = join.args.get("on")
    return text(condition) if condition else ""


def _conjuncts(condition: exp.Expr) -> Iterable[exp.Expr]:
    return condition.flatten() if isinstance(condition, exp.And) else [condition]


def _text(node: exp.Expr, dialect: Dialect) -> str:
    """The SQL of a part on one line, without its subqueries."""
    holder = exp.Paren(this=node.copy())  # so that the part itself can be replaced
    for query in list(holder.find_all(exp.Select, exp.SetOperation)):
        if query.find_ancestor(exp.Select, exp.SetOperation) is None:
            query.replace(exp.Var(this=SUBQUERY))
    for inner in list(holder.walk()):
        spell(inner, dialect)
    return " ".join(holder.this.sql(dialect=dialect.name, comments=False).split())
