"""What kind of query a SQL text is: the scenarios that accuracy is reported by."""

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

SCENARIOS = ("single table", "join", "subquery", "aggregate", "window function", "set operation")
UNPARSED = "unparsed"


def scenario_of(sql: str) -> str:
    """Name the scenario of a SQLite query.

    A query has one scenario, the first of these that holds anywhere in it: a window function, a set operation, a
    subquery (a nested SELECT or a common table expression), a join (more than one table in a FROM), an aggregate (an
    aggregate function or GROUP BY); otherwise it reads a single table.

    Returns:
        One of `SCENARIOS`, or "unparsed" for what is not one query that sqlglot can parse.
    """
    try:
        query = sqlglot.parse_one(sql, read="sqlite")
        nodes = list(query.walk())
    except (SqlglotError, RecursionError):
        return UNPARSED
    if not isinstance(query, exp.Query):
        return UNPARSED
    return _first_that_holds(nodes)


def _first_that_holds(nodes: list[exp.Expr]) -> str:
    def any_is(*kinds: type[exp.Expr]) -> bool:
        return any(isinstance(node, kinds) for node in nodes)

    if any_is(exp.Window):
        return "window function"
    if any_is(exp.SetOperation):
        return "set operation"
    if sum(isinstance(node, exp.Select) for node in nodes) > 1:
        return "subquery"
    if any_is(exp.Join):
        return "join"
    if any_is(exp.AggFunc, exp.Group):
        return "aggregate"
    return "single table"
