"""The single statement of a text: what is quoted, and which statements are empty."""

import re

# Text that a semicolon cannot end: strings, quoted names, PostgreSQL's dollar quotes, and comments. An unclosed one
# reaches to the end of the text, which also keeps matching linear.
QUOTED = (
    r"'[^']*+(?:'|\Z)|\"[^\"]*+(?:\"|\Z)|`[^`]*+(?:`|\Z)|\[[^\]]*+(?:\]|\Z)"
    r"|(?<!\w)\$(?P<dollar>\w*+)\$.*?(?:\$(?P=dollar)\$|\Z)|--[^\n]*+|/\*.*?(?:\*/|\Z)"
)
_QUOTED_OR_END = re.compile(rf"{QUOTED}|(?P<end>;)", re.DOTALL)
_BLANK = r"\s++|--[^\n]*+|/\*.*?(?:\*/|\Z)"
_EMPTY_STATEMENTS = re.compile(rf"(?:(?:{_BLANK})*+;)*+", re.DOTALL)
_NOTHING = re.compile(rf"(?:{_BLANK}|;)*+", re.DOTALL)


def single_statement(sql: str) -> str:
    """A text without its empty statements, which hold nothing but blanks and comments: `SELECT 1;;` gives `SELECT 1`.

    A text of several statements is returned unchanged, for its executor to refuse.
    """
    if ";" not in sql:
        return sql
    before = _EMPTY_STATEMENTS.match(sql)
    statement = sql[before.end() :] if before else sql
    for match in _QUOTED_OR_END.finditer(statement):
        if match["end"]:
            is_last = _NOTHING.fullmatch(statement, match.end()) is not None
            return statement[: match.start()] if is_last else sql
    return statement
