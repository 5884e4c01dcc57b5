"""Queries with FROM before SELECT, in the order in which SQL is evaluated: `sql_form: from_first`.

    SELECT name FROM singer WHERE age > 20 ORDER BY age
    FROM singer WHERE age > 20 SELECT name ORDER BY age

A model that writes FROM first knows the tables when it names their columns. Subqueries have the same order. The clauses
are moved as text, so that a wrong or truncated answer is turned back too, and the dialect of SQL does not matter.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import sqlglot
from sqlglot import Token, TokenType
from sqlglot.errors import SqlglotError

_SET_OPERATORS = frozenset({TokenType.UNION, TokenType.EXCEPT, TokenType.INTERSECT})
# What follows FROM, WHERE, GROUP BY and SELECT in either order.
_TAIL = frozenset(
    {
        TokenType.ORDER_BY,
        TokenType.LIMIT,
        TokenType.OFFSET,
        TokenType.FETCH,
        TokenType.FOR,
        TokenType.SEMICOLON,
    }
)
_AFTER_SELECT = _TAIL | {TokenType.WHERE, TokenType.GROUP_BY, TokenType.HAVING, TokenType.WINDOW}
# Where a query begins with FROM; after WITH, that is not easy to tell.
_FROM_FIRST = re.compile(r"(?:\A|\(|\b(?:UNION|ALL|EXCEPT|INTERSECT))\s*+FROM\b|(?:\A|\()\s*+WITH\b", re.IGNORECASE)


class _Piece(NamedTuple):
    """A token, or a pair of parentheses with its content, and whether anything in it was moved."""

    kind: TokenType
    text: str
    is_moved: bool = False


def from_first(sql: str) -> str:
    """The query and its subqueries with FROM, WHERE, GROUP BY and HAVING before SELECT.

    `sql` has keywords in quotes where they are names, as `qualify` writes them. A text that is not SQL is returned
    unchanged.
    """
    return _reordered(sql, _select_last)


def select_first(sql: str) -> str:
    """The query and its subqueries in SQL's order, if any of them has FROM before SELECT; else the text unchanged."""
    return _reordered(sql, _select_to_front) if _FROM_FIRST.search(sql) else sql


def _reordered(sql: str, reorder: Callable[[list[_Piece]], list[_Piece]]) -> str:
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
    except SqlglotError:
        return sql
    try:
        pieces = _reordered_level(_Reader(sql, tokens), reorder)
    except RecursionError:
        return sql
    return _joined(pieces) if any(piece.is_moved for piece in pieces) else sql


class _Reader:
    """The tokens of a text, with their layout, one after the other."""

    def __init__(self, sql: str, tokens: list[Token]) -> None:
        self._sql, self._tokens, self._end = sql, iter(tokens), 0

    def __iter__(self) -> Iterator[tuple[TokenType, str]]:
        for token in self._tokens:
            text = self._sql[self._end : token.end + 1]
            self._end = token.end + 1
            yield token.token_type, text


def _reordered_level(reader: _Reader, reorder: Callable[[list[_Piece]], list[_Piece]]) -> list[_Piece]:
    """Reorder the query, or queries, up to the next closing parenthesis, which is the last piece."""
    done: list[_Piece] = []
    query: list[_Piece] = []
    for kind, text in reader:
        if kind == TokenType.L_PAREN:
            inside = _reordered_level(reader, reorder)
            query.append(_Piece(kind, text + _joined(inside).lstrip(), any(piece.is_moved for piece in inside)))
        elif kind in _SET_OPERATORS:
            done += [*reorder(query), _Piece(kind, text)]
            query = []
        elif kind == TokenType.R_PAREN:
            return [*done, *reorder(query), _Piece(kind, text)]
        else:
            query.append(_Piece(kind, text))
    return [*done, *reorder(query)]


def _select_last(query: list[_Piece]) -> list[_Piece]:
    start = _find(query, {TokenType.SELECT})
    if not _is_beginning(query[:start]):
        return query
    body = _find(query, {TokenType.FROM}, start)
    tail = _find(query, _TAIL, body)
    return _moved(query, start, body, tail)


def _select_to_front(query: list[_Piece]) -> list[_Piece]:
    start = _find(query, {TokenType.FROM, TokenType.SELECT})
    if start == len(query) or query[start].kind == TokenType.SELECT or not _is_beginning(query[:start]):
        return query
    select = _find(query, {TokenType.SELECT}, start)
    return _moved(query, start, select, _find(query, _AFTER_SELECT, select))


def _moved(query: list[_Piece], first: int, second: int, end: int) -> list[_Piece]:
    """Exchange two neighboring parts of a query, if there are two."""
    if second >= end:
        return query
    parts = (query[:first], query[second:end], query[first:second], query[end:])
    # Every part begins with a space, also the one that began the text.
    return [
        _Piece(piece.kind, f" {piece.text.lstrip()}" if number == 0 else piece.text, is_moved=True)
        for part in parts
        for number, piece in enumerate(part)
    ]


def _is_beginning(pieces: list[_Piece]) -> bool:
    """Whether a query may follow: at the beginning, after common table expressions, or after UNION's ALL."""
    return not pieces or pieces[0].kind in (TokenType.WITH, TokenType.ALL, TokenType.DISTINCT)


def _find(query: list[_Piece], kinds: set[TokenType] | frozenset[TokenType], start: int = 0) -> int:
    """The index of the first piece of one of the kinds; the number of pieces if there is none."""
    for index in range(start, len(query)):
        if query[index].kind in kinds and not _is_comparison(query, index):
            return index
    return len(query)


def _is_comparison(query: list[_Piece], index: int) -> bool:
    """Whether a FROM is that of IS [NOT] DISTINCT FROM."""
    before = [piece.kind for piece in islice(query, max(0, index - 2), index)]
    return before in ([TokenType.IS, TokenType.DISTINCT], [TokenType.NOT, TokenType.DISTINCT])


def _joined(pieces: list[_Piece]) -> str:
    return "".join(piece.text for piece in pieces).lstrip()
