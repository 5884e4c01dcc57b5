"""Which texts are sent to a server: one statement that only reads, and calls only functions that only compute.

A server's read-only transaction refuses changes to tables, but not files, connections, locks or settings, which are a
matter of functions. So a call is permitted only if the function is on the dialect's list, see `server_dialects.py`.

sqlglot and a server may read a comment differently, and what is a comment for one is code for the other. So comments
are not sent: the text is put together again from sqlglot's tokens.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import sqlglot
from sqlglot import Token, TokenType, exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.sql.parsing import check_parsable
from chatmetrics.components.redaction import one_line

# Parsing takes longer than linear time for some texts, and cannot be interrupted.
MAX_TOKENS = 5_000
MAX_COSTLY_DEPTH = 8  # of brackets that sqlglot tries to read in two ways, each in twice the time of the one inside it


def words(text: str) -> frozenset[str]:
    """The words of a text, for a long list of names."""
    return frozenset(text.split())


WRITES = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.DDL, exp.Command, exp.Into, exp.Lock)
TYPES = words(
    """
    bigint binary bit blob char character date datetime dec decimal double enum fixed float int integer interval
    list map nchar number numeric nvarchar precision real smallint struct text time timestamp timestamptz tinyint
    varbinary varbit varchar varying year zone
    """
)
# Words before a parenthesis that are part of the grammar, not the name of a function; then types with a length.
GRAMMAR = TYPES | words(
    """
    all and any array as bernoulli between by case columns cube distinct div else end escape except exists filter
    first from group having if ilike in index intersect is join key lateral like limit materialized mod next not
    nothing offset on only operator or over partition pivot qualify recursive regexp returning rlike rollup row rows
    select sets similar some system then to union unpivot using values when where with within xor
    """
)
COSTLY = TYPES | {"array", "row"}
# Calls that are part of SQL's grammar in all dialects; no server lists them as functions.
SYNTAX = words(
    """
    cast coalesce count exists extract grouping nullif overlay position row substring trim unnest
    """
)
STRINGS = {
    *(TokenType.STRING, TokenType.NATIONAL_STRING, TokenType.RAW_STRING, TokenType.HEREDOC_STRING),
    *(TokenType.UNICODE_STRING, TokenType.BYTE_STRING, TokenType.BIT_STRING, TokenType.HEX_STRING),
}
# Strings in which a backslash or UESCAPE changes what the next one means, if it continues them on another line.
ESCAPED_STRINGS = {TokenType.BYTE_STRING, TokenType.UNICODE_STRING}
OPENING = {TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE}
CLOSING = {TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE}
VARIABLES = {TokenType.PARAMETER, TokenType.COLON_EQ}  # of MySQL
UNDERLINED = re.compile(r"\x1b\[\d+m")  # what sqlglot's messages mark a place with
EXECUTED = re.compile(r"/\*m?!", re.IGNORECASE)
NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a query may use.

    Attributes:
        functions: lower-case names of the functions that it may call.
        other_functions: lower-case names of other functions of the server, as far as they are known.
        fields: names that mean a call of a function after a dot, as PostgreSQL's `(1).pg_sleep`.
        names: pattern of the names, in lower case, that it may not use: the server's own tables and views.
        qualifiers: lower-case names that it may not use before a dot: schemas of the server itself.
    """

    functions: frozenset[str]
    other_functions: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    names: re.Pattern[str] = NOTHING
    qualifiers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Checked:
    """A text without its comments, or the result of one that is not sent."""

    sql: str
    refusal: Result | None = None


def check_query(sql: str, dialect: str, rules: Rules) -> Checked:
    """Check a text before it is sent to a server.

    Args:
        sql: untrusted text.
        dialect: dialect of the server, as sqlglot names it.
        rules: what it may use.
    """
    try:
        sql.encode()
        check_parsable(sql)
        tokens = sqlglot.tokenize(sql, read=dialect)
        if problem := _too_complex(tokens):
            return _malformed(problem)
        text = _without_comments(sql, tokens)
        reason = _refused_syntax(sql, tokens, dialect)
        if not reason and [token.text for token in sqlglot.tokenize(text, read=dialect)] != [t.text for t in tokens]:
            reason = "text that is read in two ways"
        if reason:
            return _refused(f"{reason} is not permitted in a query")
        statements = [statement for statement in sqlglot.parse(text, read=dialect) if statement is not None]
    except (SqlglotError, RecursionError, TypeError, UnicodeError) as error:  # TypeError: a bug of sqlglot, `a ->> .b`
        return _malformed(UNDERLINED.sub("", one_line(error)))
    if not statements:
        return Checked("", Result(failure=FailureMode.NO_SQL, message="there is no statement"))
    if len(statements) > 1:
        return _refused("several statements")
    if not isinstance(statements[0], exp.Query | exp.Values | exp.Pivot) or statements[0].find(*WRITES):
        return _refused("not a statement that only reads")
    reason = _refused_name(tokens, rules) or _refused_call(statements[0], tokens, rules)
    return _refused(f"{reason} is not permitted in a query") if reason else Checked(text)


def _refused(message: str) -> Checked:
    return Checked("", Result(failure=FailureMode.REFUSED, message=message))


def _malformed(message: str) -> Checked:
    return Checked("", Result(failure=FailureMode.DOES_NOT_PARSE, message=message))


def _too_complex(tokens: Sequence[Token]) -> str:
    """Why a text would take too long to parse; empty if it would not."""
    if len(tokens) > MAX_TOKENS:
        return f"{len(tokens)} words and signs of SQL, at most {MAX_TOKENS} are run"
    stack: list[bool] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.token_type in OPENING:
            is_costly = before is not None and _word(before) in COSTLY
            stack.append(is_costly or token.token_type != TokenType.L_PAREN)
            if sum(stack) > MAX_COSTLY_DEPTH:
                return f"more than {MAX_COSTLY_DEPTH} nested types, arrays or brackets"
        elif token.token_type in CLOSING and stack:
            stack.pop()
    return ""


def _without_comments(sql: str, tokens: Sequence[Token]) -> str:
    """The tokens as they are written, with a blank where anything was between them, or a comment would begin."""
    parts: list[str] = []
    end = None
    for token in tokens:
        text = sql[token.start : token.end + 1]
        joined = (parts[-1][-1:] + text[:1]) if parts else ""
        if parts and (end != token.start or joined in ("--", "/*", "*/") or "#" in joined):
            parts.append(" ")
        parts.append(text)
        end = token.end + 1
    return "".join(parts)


def _refused_syntax(sql: str, tokens: Sequence[Token], dialect: str) -> str:
    """What sqlglot may read otherwise than the server, or what changes a session."""
    for token, following in pairwise(tokens):
        if token.token_type in ESCAPED_STRINGS and following.token_type in STRINGS:
            return "a string that continues one with escapes"
        if token.token_type in STRINGS and following.token_type == TokenType.L_PAREN:
            return "a string before a parenthesis"
    for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False):
        is_escaped = first.text.lower() == "u" and third.token_type == TokenType.IDENTIFIER
        if is_escaped and second.token_type == TokenType.AMP and first.end + 1 == second.start:
            return 'U&"..."'
    if any(token.token_type == TokenType.INTO for token in tokens):
        return "INTO"
    if any(token.token_type == TokenType.SESSION_PARAMETER for token in tokens):
        return "a variable"
    if dialect == "mysql":
        ends, starts = [0, *(token.end + 1 for token in tokens)], [*(token.start for token in tokens), len(sql)]
        if any(EXECUTED.search(sql, end, start) for end, start in zip(ends, starts, strict=True)):
            return "a comment that the server executes"
        for token in tokens:
            if token.token_type in VARIABLES:
                return "a variable"
            if token.token_type not in STRINGS | {TokenType.IDENTIFIER} and token.text.startswith(("#", "--", "/*")):
                return "the beginning of a comment"
    return ""


def _refused_name(tokens: Sequence[Token], rules: Rules) -> str:
    """The first table, view or field that is not permitted; empty if there is none."""
    for before, token, following in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        if not _is_name(token):
            continue
        name = token.text.lower()
        is_called = following is not None and following.token_type == TokenType.L_PAREN
        is_qualifier = following is not None and following.token_type == TokenType.DOT
        is_field = before is not None and before.token_type == TokenType.DOT and not is_called
        if (is_field and name in rules.fields) or (is_qualifier and name in rules.qualifiers):
            return token.text
        if not is_called and rules.names.fullmatch(name):
            return token.text
    return ""


def _refused_call(statement: exp.Expr, tokens: Sequence[Token], rules: Rules) -> str:
    """The first call of a function that is not permitted, as text; empty if there is none."""
    # `WITH best (name) AS ...` and `AS t (a, b)` look like a call, each once.
    named = Counter(alias.name.lower() for alias in statement.find_all(exp.TableAlias) if alias.columns)
    for token, following in pairwise(tokens):
        if following.token_type != TokenType.L_PAREN or not _is_name(token):
            continue
        name = _word(token)
        if name in rules.functions:
            continue
        is_word = token.token_type != TokenType.IDENTIFIER and name not in rules.other_functions
        if is_word and name in GRAMMAR:
            continue
        if named[name] > 0:
            named[name] -= 1
            continue
        return f"the function {token.text}"
    return ""


def _word(token: Token) -> str:
    """A name, or the last word of a keyword of several, such as GROUP BY; in lower case."""
    name = token.text.lower()
    return name if token.token_type == TokenType.IDENTIFIER else (name.split() or [""])[-1]


def _is_name(token: Token) -> bool:
    return token.token_type == TokenType.IDENTIFIER or (
        token.token_type not in STRINGS and token.token_type != TokenType.NUMBER and token.text[:1].isidentifier()
    )
