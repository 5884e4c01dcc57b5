"""Rows that tie: the query that ranks a query's rows by what it orders them by.

A query's text is kept as it is, up to its ORDER BY; only the values that it orders by are added to its SELECT list, so
that HAVING, GROUP BY and the rest still refer to what they did:

    SELECT name, count(*) AS n FROM hotel GROUP BY name ORDER BY n DESC, max(rating) LIMIT 3

    WITH ... (c1, c2, k1) AS (SELECT name, count(*) AS n , max(rating) FROM hotel GROUP BY name)
    SELECT ... c1, c2, RANK() OVER (ORDER BY c2 DESC, k1) ...

The database itself compares the values, with its collations. `verdict.py` uses the ranks only if the query also returns
the original query's rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import sqlglot
from sqlglot import Token, TokenType

from chatmetrics.components.nl2sql.sql.statements import single_statement

ROWS = "chatmetrics_rows"  # the name of a subquery, unlike that of any table
_SET_OPERATIONS = {TokenType.UNION, TokenType.EXCEPT, TokenType.INTERSECT}
_AFTER_ORDER = {TokenType.LIMIT, TokenType.OFFSET, TokenType.FETCH, TokenType.FOR, TokenType.SEMICOLON}
_AFTER_SELECT_LIST = {TokenType.FROM, TokenType.WHERE, TokenType.GROUP_BY, TokenType.HAVING, TokenType.ORDER_BY}
# Words that end an expression, and so are no alias.
_LAST_WORDS = {"END", "NULL", "TRUE", "FALSE", "ISNULL", "NOTNULL"}


@dataclass(frozen=True, slots=True)
class _Term:
    """A term of ORDER BY: the tokens of its expression, and the text after it (COLLATE, DESC, NULLS LAST)."""

    key: list[Token]
    suffix: str


class OrderedQuery:
    """A query with ORDER BY outside all parentheses.

    Args:
        sql: one statement, for which `is_ordered` is true.
    """

    def __init__(self, sql: str) -> None:
        self._sql = single_statement(sql)
        tokens = sqlglot.tokenize(self._sql, read="sqlite")
        depths = accumulate(
            (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN) for token in tokens
        )
        # Whether a token is outside all parentheses.
        self._tokens = [(token, depth == 0) for token, depth in zip(tokens, depths, strict=True)]
        self._order = self._first({TokenType.ORDER_BY}, 0)
        self._end = self._first(_AFTER_ORDER, self._order)
        self.is_limited = self._end < len(tokens)

    @cached_property
    def skipped(self) -> int | None:
        """Number of rows that OFFSET skips; None if it is not written as a number."""
        tail = [token for token, _ in self._tokens[self._end :]]
        types = [token.token_type for token in tail]
        if TokenType.OFFSET in types:
            number = tail[types.index(TokenType.OFFSET) + 1 :][:1]
        elif TokenType.COMMA in types:  # LIMIT 2, 10
            number = tail[1 : types.index(TokenType.COMMA)]
        else:
            return 0
        return int(number[0].text) if len(number) == 1 and _is_integer(number[0]) else None

    @property
    def without_limit(self) -> str:
        """The query without LIMIT and OFFSET."""
        return self._sql[: self._tokens[self._end][0].start] if self.is_limited else self._sql

    def rankings(self, columns: Sequence[str], last_place: int | None) -> Iterator[str]:
        """Queries that return each row of this one, followed by its rank; rows that tie have the same rank.

        They ignore LIMIT and OFFSET. The second and third are for the case that the one before it fails: inside an
        expression, a name may be a column's or an alias; and SQLite takes a quoted name that does not exist for a
        string, unless it is in brackets, which other databases do not know.

        Args:
            columns: the names of this query's columns.
            last_place: the rank of the last row that is returned, for a query with LIMIT; None for all rows.
        """
        keys = [self._output(term.key, columns) for term in self._terms]
        added = [term.key for term, output in zip(self._terms, keys, strict=True) if output is None]
        if any(_is_constant(key) for key in added) or (added and self._is_compound):
            return
        names = iter(f"k{number}" for number in range(1, len(added) + 1))
        terms = [
            f"{next(names) if output is None else f'c{output + 1}'} {term.suffix}".strip()
            for term, output in zip(self._terms, keys, strict=True)
        ]
        variants = [(True, True), (False, True), (False, False)]  # whether aliases are replaced; whether in brackets
        for keys_text in dict.fromkeys(tuple(self._expression(key, *variant) for key in added) for variant in variants):
            yield self._ranking(list(keys_text), terms, len(columns), last_place)

    def _ranking(self, keys: list[str], terms: list[str], width: int, last_place: int | None) -> str:
        outputs = ", ".join(f"c{number}" for number in range(1, width + 1))
        named = ", ".join([outputs, *(f"k{number}" for number in range(1, len(keys) + 1))])
        places = "" if last_place is None else f"WHERE place <= {last_place} "
        return (
            f"WITH {ROWS} ({named}) AS (\n{self._with_selected(keys)}\n) SELECT * FROM "  # noqa: S608
            f"(SELECT {outputs}, RANK() OVER (ORDER BY {', '.join(terms)}) AS place FROM {ROWS}) AS ranked "
            f"{places}ORDER BY place"
        )

    def _with_selected(self, keys: list[str]) -> str:
        """The query without ORDER BY and what follows, with more expressions in its SELECT list."""
        end = self._tokens[self._order][0].start
        if not keys:
            return self._sql[:end]
        here = self._tokens[self._select_list_end(self._select)][0].start
        return f"{self._sql[:here]}, {', '.join(keys)}\n{self._sql[here:end]}"

    def _output(self, key: list[Token], columns: Sequence[str]) -> int | None:
        """Which of the columns a term refers to, from 0: by position, by name, or by repeating its expression."""
        if len(key) == 1 and _is_integer(key[0]):
            return int(key[0].text) - 1 if 0 < int(key[0].text) <= len(columns) else None
        if len(key) == 1 and _is_name(key[0]):
            name = key[0].text.lower()
            aliases = [_alias(item) for item in self._select_lists[0]] if self._select_lists else []
            if name in aliases and len(aliases) == len(columns):
                return aliases.index(name)
            names = [column.lower() for column in columns]
            if name in names:
                return names.index(name)
        return self._repeated(key, len(columns)) if self._is_compound else None

    def _repeated(self, key: list[Token], width: int) -> int | None:
        """Which column a term of a set operation repeats: an expression or an alias of any of its SELECTs."""
        for items in self._select_lists:
            for number, item in enumerate(items if len(items) == width else []):
                if _words(key) in (_words(item), _words(_unaliased(item)), [_alias(item)]):
                    return number
        return None

    def _expression(self, key: list[Token], replace: bool, brackets: bool) -> str:
        """The text of an expression, with the expressions of aliases in their place."""
        text, position = "", key[0].start
        for number, token in enumerate(key):
            text += self._sql[position : token.start]
            is_qualified = [other.token_type for other in key[max(number - 1, 0) : number]] == [TokenType.DOT]
            is_followed = {other.token_type for other in key[number + 1 :][:1]} & {TokenType.DOT, TokenType.L_PAREN}
            is_plain = _is_name(token) and not is_qualified and not is_followed
            written = self._sql[token.start : token.end + 1]
            if is_plain and replace and token.text.lower() in self._aliased:
                written = f"({self._aliased[token.text.lower()]})"
            elif brackets and written.startswith('"') and "]" not in token.text:
                written = f"[{token.text}]"
            text, position = text + written, token.end + 1
        return text

    @cached_property
    def _terms(self) -> list[_Term]:
        return [self._term(tokens) for tokens in self._split(self._order + 1, self._end)]

    def _term(self, tokens: list[Token]) -> _Term:
        key = list(tokens)
        if len(key) > 2 and _word(key[-2]) == "NULLS":
            key = key[:-2]
        if len(key) > 1 and _word(key[-1]) in ("ASC", "DESC"):
            key = key[:-1]
        if len(key) > 2 and key[-2].token_type == TokenType.COLLATE:
            key = key[:-2]
        suffix = self._sql[key[-1].end + 1 : tokens[-1].end + 1]
        while len(key) > 2 and _is_parenthesized(key):
            key = key[1:-1]
        return _Term(key, suffix)

    @cached_property
    def _select(self) -> int:
        """The place of the (first) SELECT; the number of tokens if there is none outside all parentheses."""
        return self._first({TokenType.SELECT}, 0)

    @cached_property
    def _is_compound(self) -> bool:
        return self._first(_SET_OPERATIONS, 0) < self._order or self._select > self._order

    @cached_property
    def _select_lists(self) -> list[list[list[Token]]]:
        """The tokens of each column of each SELECT of a set operation; of one SELECT otherwise."""
        selects = [
            place
            for place, (token, outside) in enumerate(self._tokens[: self._order])
            if outside and token.token_type == TokenType.SELECT
        ]
        return [self._split(self._after_distinct(place), self._select_list_end(place)) for place in selects]

    @cached_property
    def _aliased(self) -> dict[str, str]:
        """The text of each expression in the SELECT list that has an alias."""
        items = self._select_lists[0] if self._select_lists else []
        return {
            alias: self._sql[item[0].start : _unaliased(item)[-1].end + 1]
            for item in reversed(items)  # of two equal aliases, the first counts
            if (alias := _alias(item))
        }

    def _after_distinct(self, select: int) -> int:
        return select + 1 + (_word(self._tokens[select + 1][0]) in ("DISTINCT", "ALL"))

    def _select_list_end(self, select: int) -> int:
        place = self._first(_AFTER_SELECT_LIST | _SET_OPERATIONS, self._after_distinct(select))
        while _word(self._tokens[place - 1][0]) == "DISTINCT":  # a IS DISTINCT FROM b
            place = self._first(_AFTER_SELECT_LIST | _SET_OPERATIONS, place + 1)
        return place

    def _first(self, types: set[TokenType], start: int) -> int:
        """The place of the first token of some types outside all parentheses; the number of tokens if there is none."""
        places = range(start, len(self._tokens))
        found = (place for place in places if self._tokens[place][1] and self._tokens[place][0].token_type in types)
        return next(found, len(self._tokens))

    def _split(self, start: int, stop: int) -> list[list[Token]]:
        """The tokens between two places, split at the commas outside all parentheses."""
        parts: list[list[Token]] = [[]]
        for token, outside in self._tokens[start:stop]:
            if outside and token.token_type == TokenType.COMMA:
                parts.append([])
            else:
                parts[-1].append(token)
        return [part for part in parts if part]


def _word(token: Token) -> str:
    """A token in capitals; the empty string for a quoted one."""
    return "" if token.token_type in (TokenType.IDENTIFIER, TokenType.STRING) else token.text.upper()


def _words(tokens: Sequence[Token]) -> list[str]:
    return [token.text.lower() for token in tokens]


def _is_integer(token: Token) -> bool:
    return token.token_type == TokenType.NUMBER and token.text.isdecimal()


def _is_name(token: Token) -> bool:
    return token.token_type == TokenType.IDENTIFIER or _word(token).isidentifier()


def _is_constant(key: Sequence[Token]) -> bool:
    """Whether an expression is a single value, such as the string 'n' where the column "n" was meant."""
    return len(key) == 1 and key[0].token_type in (TokenType.STRING, TokenType.NUMBER, TokenType.NULL)


def _is_parenthesized(key: Sequence[Token]) -> bool:
    """Whether the first parenthesis closes with the last token."""
    steps = [(token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN) for token in key]
    return steps[0] == 1 and 0 not in list(accumulate(steps))[:-1] and steps[-1] == -1


def _alias(item: Sequence[Token]) -> str:
    """The alias of a column in the SELECT list, in lower case; the empty string if it has none."""
    return item[-1].text.lower() if len(_unaliased(item)) < len(item) else ""


def _unaliased(item: Sequence[Token]) -> Sequence[Token]:
    """A column in the SELECT list without its alias, with or without AS."""
    if len(item) < 2:
        return item
    before, last = item[-2:]
    if before.token_type == TokenType.ALIAS:
        return item[:-2]
    ends_operand = before.token_type in (TokenType.R_PAREN, TokenType.IDENTIFIER, TokenType.VAR, TokenType.NUMBER)
    ends_operand |= before.token_type == TokenType.STRING or _word(before) in _LAST_WORDS
    if len(item) > 2 and item[-3].token_type == TokenType.COLLATE and _word(last) not in _LAST_WORDS:
        ends_operand = True
    return item[:-1] if ends_operand and _is_name(last) and _word(last) not in _LAST_WORDS else item
