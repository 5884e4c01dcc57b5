"""Binding a query's names to a schema, without a model and without rows.

A small model often writes a query that is right but for a name: the wrong alias, a column of the neighbouring table, a
join that is missing. Such a query fails. Here it gets the smallest change with which all names resolve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.binding.edit import Repair, There
from chatmetrics.components.nl2sql.binding.edits import Editor
from chatmetrics.components.nl2sql.binding.scopes import Problem, unresolved
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.dialect import Dialect
from chatmetrics.components.nl2sql.sql.parsing import parse_new
from chatmetrics.components.nl2sql.sql.statements import single_statement
from chatmetrics.components.nl2sql.sqlite_compiler import unresolved_name

DIALECTS = ("sqlite", "postgres", "mysql", "duckdb")

# Limits, all of them counts, so that equal queries get equal answers. A usual query takes milliseconds, the slowest
# half a second.
MAX_CHARACTERS = 10_000
MAX_NODES = 2_000
MAX_REPAIRS = 8
MAX_EDITS = 12  # tried for one problem
MAX_STATES = 12  # kept after each edit
MAX_CANDIDATES = 4
NODES_IN_TOTAL = 20_000


@dataclass(frozen=True, slots=True)
class BoundQuery:
    """A query whose names all resolve, and the repairs that it took."""

    sql: str
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True)
class _State:
    cost: float
    tree: exp.Expr
    repairs: tuple[Repair, ...] = ()


def bind_names(sql: str, schema: Schema, dialect: str = "") -> tuple[BoundQuery, ...]:
    """Repair the names of a query that do not resolve, by the smallest change with which all do.

    Args:
        sql: untrusted text of any form.
        schema: the database's tables and foreign keys; nothing else is used.
        dialect: dialect of the query, as sqlglot names it: sqlite, postgres, mysql or duckdb; queries in others are
            unchanged. By default, the schema's.

    Returns:
        The repaired queries, at least one; several are equally small changes, always in the same order. If all names
        resolve or no repair was found, it is the text itself, unchanged and without repairs. So is a text that does not
        parse, is not a query, or is very large.
    """
    unchanged, dialect = (BoundQuery(sql),), dialect or schema.dialect
    statement = single_statement(sql)
    # sqlglot drops all statements but the first, and so would turn a text that is refused into one that runs.
    if dialect not in DIALECTS or len(sql) > MAX_CHARACTERS or ";" in statement:
        return unchanged
    if dialect == "sqlite" and not unresolved_name(schema, statement):
        return unchanged
    try:
        return _Binder(schema, Dialect(dialect)).bind(parse_new(statement, dialect)) or unchanged
    except (SqlglotError, RecursionError):
        return unchanged


class _Binder:
    """A breadth-first search over edits that keeps the cheapest states of each depth."""

    def __init__(self, schema: Schema, dialect: Dialect) -> None:
        self._schema, self._dialect = schema, dialect
        self._editor = Editor(schema, dialect)
        self._nodes_left = NODES_IN_TOTAL

    def bind(self, tree: exp.Expr) -> tuple[BoundQuery, ...]:
        """The queries at the smallest distance from a query that resolve; () if it resolves, or if there are none."""
        is_small = isinstance(tree, exp.Query) and len(list(islice(tree.walk(), MAX_NODES + 1))) <= MAX_NODES
        if not is_small or not self._problems(tree):
            return ()
        states, found, best = [_State(0.0, tree)], dict[str, BoundQuery](), float("inf")
        for _ in range(MAX_REPAIRS):
            edited = [state for before in states for state in self._edited(before)]
            states = []
            # sorted() is stable: equally small changes stay in the order in which they were found.
            for state in sorted(edited, key=lambda state: state.cost):
                if state.cost > best or len(states) == MAX_STATES:
                    break
                if self._problems(state.tree):
                    states.append(state)
                    continue
                sql = state.tree.sql(dialect=self._dialect.name)
                if self._is_bound(sql):
                    found = found if state.cost == best else {}
                    found.setdefault(sql, BoundQuery(sql, state.repairs))
                    best = state.cost
        return tuple(found.values())[:MAX_CANDIDATES]

    def _problems(self, tree: exp.Expr) -> list[Problem]:
        return unresolved(tree, self._schema, self._dialect)

    def _edited(self, state: _State) -> list[_State]:
        """The states after each edit that solves the first problem."""
        nodes = list(state.tree.walk())
        numbers = {id(node): number for number, node in enumerate(nodes)}
        following = []
        for edit in self._editor.edits(self._problems(state.tree)[0])[:MAX_EDITS]:
            self._nodes_left -= len(nodes)
            if self._nodes_left < 0:
                break
            tree = state.tree.copy()
            edit.apply(_finder(numbers, list(tree.walk())))
            following.append(_State(round(state.cost + edit.cost, 3), tree, (*state.repairs, edit.repair)))
        return following

    def _is_bound(self, sql: str) -> bool:
        """Whether SQLite resolves the names too."""
        return self._dialect.name != "sqlite" or not unresolved_name(self._schema, sql)


def _finder(numbers: Mapping[int, int], copies: Sequence[exp.Expr]) -> There:
    """A function that finds the copy of a node. A copied tree has its nodes in the order of the original."""
    return lambda node: copies[numbers[id(node)]]
