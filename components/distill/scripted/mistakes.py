"""Changes a query into a plausible wrong one: it still runs, but means something else."""

import random
from collections.abc import Callable, Iterator

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.sql.parsing import parse

_OPPOSITES: dict[type[exp.Expr], type[exp.Expr]] = {exp.GT: exp.LT, exp.LT: exp.GT, exp.GTE: exp.LTE, exp.LTE: exp.GTE}
_WRONG_AGGREGATES: dict[type[exp.Expr], type[exp.Expr]] = {
    **{exp.Avg: exp.Sum, exp.Sum: exp.Avg, exp.Max: exp.Min, exp.Min: exp.Max},
}


def mistaken(sql: str, mark: str) -> str:
    """The query with one mistake, chosen by `mark`; if no mistake is possible, a query that returns no rows."""
    try:
        found = list(_mistakes(parse(sql)))
    except (SqlglotError, RecursionError):
        found = []
    wrong = [text for query in found if (text := query.sql(dialect="sqlite")) != sql]
    return random.Random(mark).choice(wrong) if wrong else f"{sql} LIMIT 0"


def _mistakes(query: exp.Expr) -> Iterator[exp.Expr]:
    """Every possible mistake, each in a copy of the query."""
    for kinds in (_OPPOSITES, _WRONG_AGGREGATES):
        for kind, other in kinds.items():
            yield from _changed(query, kind, lambda node, other=other: other(**node.args))  # type: ignore[misc]
    yield from _changed(query, exp.Where, lambda node: None)
    yield from _changed(query, exp.Limit, lambda node: exp.Limit(expression=exp.Literal.number(1)))
    yield from _changed(query, exp.Ordered, lambda node: exp.Ordered(this=node.this, desc=not node.args.get("desc")))
    yield from _changed(query, exp.Literal, _other_literal)


def _changed(
    query: exp.Expr, kind: type[exp.Expr], change: Callable[[exp.Expr], exp.Expr | None]
) -> Iterator[exp.Expr]:
    for number, _ in enumerate(query.find_all(kind)):
        copied = query.copy()
        node = list(copied.find_all(kind))[number]
        changed = change(node)
        if changed is None:
            node.pop()
        else:
            node.replace(changed)
        yield copied


def _other_literal(node: exp.Expr) -> exp.Expr:
    text = node.name
    if node.args.get("is_string"):
        return exp.Literal.string(text[:-1] if len(text) > 1 else f"{text}x")
    return exp.Literal.number(int(text) + 1 if text.isdigit() else 0)
