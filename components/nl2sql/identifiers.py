"""Names of tables and columns as SQL identifiers: the one place that decides when a name is quoted."""

import re

# All keywords of SQLite (sqlite.org/lang_keywords.html), and true and false. Many work as names without quotes, but
# which ones depends on the version and on the place in a query: `SELECT current_date FROM day` returns today's date.
_ALL = """
abort action add after all alter always analyze and as asc attach autoincrement before begin between by cascade case
cast check collate column commit conflict constraint create cross current current_date current_time
current_timestamp database default deferrable deferred delete desc detach distinct do drop each else end escape
except exclude exclusive exists explain fail filter first following for foreign from full generated glob group
groups having if ignore immediate in index indexed initially inner insert instead intersect into is isnull join key
last left like limit match materialized natural no not nothing notnull null nulls of offset on or order others outer
over partition plan pragma preceding primary query raise range recursive references regexp reindex release rename
replace restrict returning right rollback row rows savepoint select set table temp temporary then ties to
transaction trigger unbounded union unique update using vacuum values view virtual when where window with without
true false
"""
KEYWORDS = frozenset(_ALL.split())
_PLAIN_NAME = re.compile(r"[^\W\d]\w*")
_WORDS = re.compile(r"\w+(?: \w+)+")


def quoted(name: str) -> str:
    """A name as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def identifier(name: str) -> str:
    """A name as a query must spell it: quoted if it is a keyword or contains anything but letters, digits and `_`."""
    return quoted(name) if needs_quotes(name) else name


def needs_quotes(name: str) -> bool:
    """Whether a name is a keyword or contains anything but letters, digits and `_`."""
    return not _PLAIN_NAME.fullmatch(name) or name.lower() in KEYWORDS


def m_schema_name(name: str) -> str:
    """A name in M-Schema, which shows words with spaces between them as they are; otherwise like `identifier`."""
    return name if _WORDS.fullmatch(name) else identifier(name)
