"""A grammar of queries in which every name is one of a schema's, in GBNF, the notation of llama.cpp's server.

With it, the server chooses the most likely token among those that continue a table, a column, a keyword or a value, so
that a model cannot invent a name. The grammar knows words, not scopes: the table of a column may be another one, or not
be in FROM. The binder repairs that better than a grammar can forbid it, because a wrong name tells what was meant (see
docs/accuracy.md). The notation is described in llama.cpp's grammars/README.md.
"""

from collections.abc import Iterable

from chatmetrics.components.nl2sql.identifiers import identifier
from chatmetrics.components.nl2sql.schema import Schema

_KEYWORDS = """
ALL AND ASC BETWEEN BY CASE COLLATE CROSS CURRENT DESC DISTINCT ELSE END ESCAPE EXCEPT EXISTS FALSE FILTER FIRST
FOLLOWING FULL GLOB GROUP HAVING IN INNER INTERSECT IS LAST LEFT LIKE LIMIT NATURAL NOCASE NOT NULL NULLS OFFSET ON OR
ORDER OUTER OVER PARTITION PRECEDING RANGE RIGHT ROW ROWS SELECT THEN TRUE UNBOUNDED UNION USING VALUES WHEN WHERE
DATE FLOAT INT INTEGER NUMERIC REAL TEXT
"""
_FUNCTIONS = """
ABS AVG CAST CEIL COALESCE CONCAT COUNT DATE DATETIME DENSE_RANK FIRST_VALUE FLOOR GROUP_CONCAT IFNULL IIF INSTR
JULIANDAY LAG LAST_VALUE LEAD LENGTH LOWER LTRIM MAX MIN NTILE NULLIF PRINTF RANK REPLACE ROUND ROW_NUMBER RTRIM
STRFTIME SUBSTR SUBSTRING SUM TIME TOTAL TRIM UPPER
"""
# A query plan may precede the query, and the query may begin with FROM; see `answer_form`.
_RULES = r"""
root ::= plan ("SELECT" | "select" | "WITH" | "with" | from) (gap item)* gap?
plan ::= ("Tables: " line ("Joins: " line)? ("Conditions: " line)?)?
line ::= item ([ (),;*=<>!+/%|-]+ item)* ")"* "\n"
item ::= keyword | from | as | call | name | string | number | "..."
from ::= ([fF] [rR] [oO] [mM] | [jJ] [oO] [iI] [nN]) space ("(" space? item? | table)
as ::= [aA] [sS] space (alias | [a-zA-Z_]+)
call ::= function " "? "(" space? item?
name ::= column | (table | alias) ("." (column | "*"))? | "`" (table | column) "`"
alias ::= [tT] [0-9] | table "_" [0-9]
string ::= "'" ([^'\n] | "''")* "'" | "\"" [^"\n]* "\""
number ::= [0-9]+ ("." [0-9]+)?
space ::= [ \t\n]+
gap ::= [ \t\n(),;*=<>!+/%|-]+
"""


def name_grammar(schema: Schema) -> str:
    """The grammar of the queries whose names are those of a schema, in any case.

    Names that a query declares itself are `T1` to `T9` and, as in canonical SQL, a table's name with a number. Other
    aliases and common table expressions can be declared, but not used. Functions are the common ones of SQLite.

    Args:
        schema: the whole schema; it has at least one table.
    """
    columns = [column for table in schema.tables for column in table.column_names]
    rules = {
        "keyword": _one_of(_KEYWORDS.split()),
        "function": _one_of(_FUNCTIONS.split()),
        "table": _one_of(identifier(table.name) for table in schema.tables),
        "column": _one_of(map(identifier, columns)),
    }
    return _RULES.lstrip() + "".join(f"{name} ::= {text}\n" for name, text in rules.items())


def _one_of(words: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(map(_word, words)))


def _word(word: str) -> str:
    """A word in GBNF, whose ASCII letters may be in any case, as in SQLite: `a1` is [aA] "1"."""
    return " ".join(map(_character, word))


def _character(character: str) -> str:
    if character.isascii() and character.isalpha():
        return f"[{character.lower()}{character.upper()}]"
    return f'"\\U{ord(character):08X}"'
