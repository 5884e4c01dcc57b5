"""Which texts are sent to a server: one statement that only reads, and calls only functions that only compute.

A server's read-only transaction refuses changes to tables, but not files, connections, locks or settings, which are a
matter of functions. So a call is permitted only if the function is on the dialect's list, see `server_dialects.py`.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

import sqlglot
from sqlglot import Token, TokenType, exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.databases.execution import MAX_SQL_CHARACTERS, FailureMode, Result
from chatmetrics.components.nl2sql.sql.parsing import check_depth
from chatmetrics.components.redaction import one_line


def words(text: str) -> frozenset[str]:
    """The words of a text, for a long list of names."""
    return frozenset(text.split())


WRITES = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.DDL, exp.Command, exp.Into, exp.Lock)
# Words before a parenthesis that are part of the grammar, not the name of a function; then types with a length.
GRAMMAR = words(
    """
    all and any array as between by case cube distinct div else end escape except exists filter first from group
    having if ilike in intersect is join lateral like limit mod next not nothing offset on only or over
    partition qualify recursive regexp returning rlike rollup row rows select sets similar some then to union
    using values when where with within xor
    bigint binary bit blob char character datetime dec decimal double enum fixed float int integer interval list
    map nchar number numeric nvarchar precision real smallint struct text time timestamp timestamptz tinyint
    varbinary varbit varchar varying year zone
    """
)
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
UNDERLINED = re.compile(r"\x1b\[\d+m")  # what sqlglot's messages mark a place with


def rejection(sql: str, dialect: str, functions: Collection[str], tables: Collection[str] = ()) -> Result | None:
    """The result of a text that is not sent to a server; None for a text that may be sent.

    Args:
        sql: untrusted text.
        dialect: dialect of the server, as sqlglot names it.
        functions: lower-case names of the functions that a query may call.
        tables: lower-case names of the server's own tables and views that a query may not read.
    """
    if len(sql) > MAX_SQL_CHARACTERS:
        message = f"{len(sql)} characters of SQL, at most {MAX_SQL_CHARACTERS} are run"
        return Result(failure=FailureMode.DOES_NOT_PARSE, message=message)
    try:
        tokens = sqlglot.tokenize(sql, read=dialect)
        if reason := _refused_syntax(sql, tokens, dialect):
            return _refused(f"{reason} is not permitted in a query")
        check_depth(sql)
        statements = [statement for statement in sqlglot.parse(sql, read=dialect) if statement is not None]
    except (SqlglotError, RecursionError) as error:
        return Result(failure=FailureMode.DOES_NOT_PARSE, message=UNDERLINED.sub("", one_line(error)))
    if not statements:
        return Result(failure=FailureMode.NO_SQL, message="there is no statement")
    if len(statements) > 1:
        return _refused("several statements")
    if not isinstance(statements[0], exp.Query) or statements[0].find(*WRITES):
        return _refused("not a statement that only reads")
    table = next((token.text for token in tokens if _is_name(token) and token.text.lower() in tables), "")
    reason = table or _refused_call(statements[0], tokens, functions)
    return _refused(f"{reason} is not permitted in a query") if reason else None


def _refused(message: str) -> Result:
    return Result(failure=FailureMode.REFUSED, message=message)


def _refused_syntax(sql: str, tokens: Sequence[Token], dialect: str) -> str:
    """What sqlglot may read otherwise than the server, or what changes a session."""
    for token, following in pairwise(tokens):
        if token.token_type in ESCAPED_STRINGS and following.token_type in STRINGS:
            return "a string that continues one with escapes"
        if token.text.lower() == "u" and following.token_type == TokenType.AMP and sql[following.end + 1 :][:1] == '"':
            return 'U&"..."'
    if any(token.token_type == TokenType.INTO for token in tokens):
        return "INTO"
    if dialect == "mysql":
        ends, starts = [-1, *(token.end for token in tokens)], [*(token.start for token in tokens), len(sql)]
        gaps = [sql[end + 1 : start] for end, start in zip(ends, starts, strict=True)]
        if any("/*!" in gap or "/*m!" in gap.lower() for gap in gaps):
            return "a comment that the server executes"
        if any(token.token_type in (TokenType.PARAMETER, TokenType.COLON_EQ) for token in tokens):
            return "a variable"
    return ""


def _refused_call(statement: exp.Expr, tokens: Sequence[Token], functions: Collection[str]) -> str:
    """The first call of a function that is not permitted, as text; empty if there is none."""
    # `WITH best (name) AS ...` and `AS t (a, b)` look like a call, each once.
    named = Counter(alias.name.lower() for alias in statement.find_all(exp.TableAlias) if alias.columns)
    for token, following in pairwise(tokens):
        name = token.text.lower() if token.token_type == TokenType.IDENTIFIER else token.text.lower().split()[-1]
        if following.token_type != TokenType.L_PAREN or not _is_name(token) or name in functions:
            continue
        if token.token_type != TokenType.IDENTIFIER and name in GRAMMAR:
            continue
        if named[name] > 0:
            named[name] -= 1
            continue
        return f"the function {token.text}"
    return ""


def _is_name(token: Token) -> bool:
    return token.token_type == TokenType.IDENTIFIER or (
        token.token_type not in STRINGS and token.token_type != TokenType.NUMBER and token.text[:1].isidentifier()
    )
