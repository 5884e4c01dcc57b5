"""The canonical form of a query: equal for queries that differ only in spelling. Queries are compared by it.

It is not what models are trained on with `preprocess.sql_form: canonical`; that is in `qualified_names.py`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import sqlglot
from sqlglot import Token, TokenType, exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.sql.parsing import parse_new

_PLAIN_NAME = re.compile(r"[^\W\d]\w*")
# Layout, comments and semicolons before a query.
_BEGIN = re.compile(r"\A(?:[\s;\ufeff]|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*+", re.DOTALL)
_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.Glob, exp.Is)
_PREDICATES = (*_COMPARISONS, exp.In, exp.Between, exp.Not, exp.Exists)
_OPERATORS = (exp.Binary, exp.Unary, exp.Between, exp.In, exp.Collate)
_SPELLINGS = {"!=": "<>", "==": "="}


@lru_cache(maxsize=16384)
def canonical(sql: str) -> str:
    """The canonical form of a query, for comparison and not for execution.

    It has no layout, comments, semicolons, quotes around names, redundant parentheses, or aliases that only rename.
    Keywords and names have one case; values are unchanged. Nothing that needs the schema or changes the order of
    anything is done, so that different queries keep different forms. A query that sqlglot cannot parse is normalized
    word by word.
    """
    try:
        return canonical_tree(sql).sql(dialect="sqlite", normalize=True, comments=False)
    except (SqlglotError, RecursionError):
        return _canonical_words(sql)


def canonical_tree(sql: str) -> exp.Expr:
    """The syntax tree of a query's canonical form; the caller may change it.

    Raises:
        SqlglotError: the query cannot be parsed.
        RecursionError: the query is nested too deeply.
    """
    stripped = _BEGIN.sub("", sql).rstrip("; \t\r\n")
    tree = parse_new(stripped)
    while isinstance(tree, exp.Subquery | exp.Paren) and not tree.args.get("alias"):
        tree = tree.this.pop()
    _restore_texts(tree, stripped)
    for node in list(tree.walk()):
        _simplify(node)
    _drop_column_aliases(tree)
    _drop_table_aliases(tree)
    return tree


def _restore_texts(tree: exp.Expr, sql: str) -> None:
    """Turn names that are texts into texts, as in `city = "Tokyo"`: SQLite does so if no column has that name.

    Without the schema, a name in double quotes that another value is compared with counts as a text, unless the query
    uses a column of that name elsewhere.
    """
    columns = list(tree.find_all(exp.Column))
    candidates = [column for column in columns if _is_compared(column) and _is_in_double_quotes(column, sql)]
    texts = {id(column) for column in candidates}
    names = {column.name.lower() for column in columns if id(column) not in texts}
    for column in candidates:
        if column.name.lower() not in names:
            column.replace(exp.Literal.string(column.name))


def _is_compared(column: exp.Column) -> bool:
    """Whether another value is compared with a column."""
    if isinstance(column.parent, exp.In | exp.Between):
        return column.arg_key != "this"
    return isinstance(column.parent, _COMPARISONS) and column.arg_key == "expression"


def _is_in_double_quotes(column: exp.Column, sql: str) -> bool:
    start = column.this.meta.get("start")
    return not column.table and start is not None and sql[start] == '"'


def _simplify(node: exp.Expr) -> None:
    """Remove what has no meaning from one node."""
    match node:
        case exp.Identifier():
            # SQLite ignores the case of quoted names, too.
            name = node.name.lower()
            node.set("this", name)
            node.set("quoted", not _PLAIN_NAME.fullmatch(name))
        case exp.Paren() if _is_redundant(node):
            node.replace(node.this)
        case exp.Join() if node.args.get("kind") in ("INNER", "OUTER"):
            node.set("kind", None)
        case exp.Collate():
            node.expression.replace(exp.to_identifier(node.expression.name.lower()))
        case exp.Ordered() if node.args.get("desc") is False:
            node.set("desc", None)
        case exp.Offset() if node.expression.name == "0":
            node.pop()


def _is_redundant(paren: exp.Paren) -> bool:
    parent, inner = paren.parent, paren.this
    if isinstance(inner, exp.Query):
        return False
    if not isinstance(parent, _OPERATORS) or isinstance(inner, exp.Column | exp.Literal | exp.Paren):
        return True
    if isinstance(parent, exp.Connector):
        return isinstance(inner, (*_PREDICATES, exp.And, type(parent)))
    return isinstance(parent, exp.Not) and isinstance(inner, _PREDICATES)


def _drop_column_aliases(tree: exp.Expr) -> None:
    """Remove the names of result columns that the query does not use itself."""
    select = tree
    while isinstance(select, exp.SetOperation):
        select = select.this
    if not isinstance(select, exp.Select):
        return
    used = {column.name for column in tree.find_all(exp.Column)}
    for column in select.expressions:
        if isinstance(column, exp.Alias) and column.alias not in used:
            column.replace(column.this)


def _drop_table_aliases(tree: exp.Expr) -> None:
    """Replace aliases of tables by the tables' names, numbered if a table occurs again, and drop needless prefixes."""
    tables = [table for table in tree.find_all(exp.Table, bfs=False) if table.name]
    times, seen = Counter(table.name for table in tables), Counter[str]()
    names: dict[tuple[int, str], str] = {}  # by the SELECT that contains the table, and alias
    sources = Counter(id(select) for select in map(_select_of_source, tree.find_all(exp.Table, exp.Subquery)) if select)
    for table in tables:
        seen[table.name] += 1
        name = table.name if times[table.name] == 1 else f"{table.name}_{seen[table.name]}"
        select = _select_of_source(table)
        if select is None:
            continue
        names[id(select), table.alias_or_name] = name
        table.set("alias", exp.TableAlias(this=exp.to_identifier(name)) if name != table.name else None)
    for column in list(tree.find_all(exp.Column)):
        for depth, select in enumerate(_selects_around(column) if column.table else ()):
            source = names.get((id(select), column.table))
            if source:
                is_only = depth == 0 and sources[id(select)] == 1
                column.set("table", None if is_only else exp.to_identifier(source))
                break


def _select_of_source(source: exp.Expr) -> exp.Select | None:
    """The SELECT that has a table or subquery in its FROM clause."""
    parent = source.parent
    if not isinstance(parent, exp.From | exp.Join) or source.arg_key != "this":
        return None
    return parent.parent if isinstance(parent.parent, exp.Select) else None


def _selects_around(node: exp.Expr) -> Iterator[exp.Select]:
    """The SELECTs that contain a node, from the inside out."""
    select = node.parent_select
    while select is not None:
        if isinstance(select, exp.Select):
            yield select
        select = select.parent_select


def _canonical_words(sql: str) -> str:
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
    except SqlglotError:
        return " ".join(sql.split()).rstrip("; ")
    return " ".join(_word(token) for token in tokens if token.token_type != TokenType.SEMICOLON)


def _word(token: Token) -> str:
    if token.token_type == TokenType.STRING:
        return "'" + token.text.replace("'", "''") + "'"
    text = str(token.text).lower()
    return _SPELLINGS.get(text, text)
