"""Plans what generated questions should be about, so that query types, tables and foreign keys are covered evenly.

A *cell* is the specification of one question: query type, language, tables and foreign keys. The *coverage* counts
how often each of these has occurred. Each new cell takes what the coverage shows to be rarest so far. For example,
with foreign keys sale-item (used 3 times) and sale-customer (used once), the next join is about sale and customer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.identifiers import identifier
from chatmetrics.components.nl2sql.join_graph import JoinGraph
from chatmetrics.components.nl2sql.schema import ForeignKey, Schema
from chatmetrics.components.nl2sql.sql.parsing import first_select, parse

# Number of tables of a question by query type, in turn; other query types have one.
_WIDTHS: dict[str, tuple[int, ...]] = {"2-3 table join": (2, 3), "larger join": (4,), "subquery": (2,)}


@dataclass(frozen=True, slots=True)
class Cell:
    """Specification of one question: query type, language, and tables with the foreign keys that join them."""

    query_type: str
    language: str
    tables: tuple[str, ...]
    foreign_keys: tuple[str, ...]


@dataclass(slots=True)
class Coverage:
    """Number of questions by query type, by language, by table and by foreign key."""

    query_types: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    tables: Counter[str] = field(default_factory=Counter)
    foreign_keys: Counter[str] = field(default_factory=Counter)

    def add(self, cell: Cell) -> None:
        """Count one question."""
        self.query_types[cell.query_type] += 1
        self.languages[cell.language] += 1
        self.tables.update(cell.tables)
        self.foreign_keys.update(cell.foreign_keys)


def key_name(key: ForeignKey, dialect: str) -> str:
    """A foreign key as text for prompts and reports, with names as the dialect spells them."""
    ends = (key.table, key.column, key.referenced_table, key.referenced_column)
    return "{}.{} = {}.{}".format(*(identifier(end, dialect) for end in ends))


def possible_query_types(schema: Schema, wanted: Sequence[str]) -> list[str]:
    """The wanted query types for which the schema has enough tables that can be joined.

    If the schema declares no foreign keys at all, every table counts as joinable with every other.
    """
    graph = _declared(schema)
    widest = max((len(graph.distances([table.name])) for table in schema.tables), default=0)
    joinable = widest if schema.foreign_keys else len(schema.tables)
    needed = {"larger join": 4, "2-3 table join": 1 if schema.foreign_keys else 2}
    return [query_type for query_type in wanted if joinable >= needed.get(query_type, 1)]


def even_shares(query_types: Sequence[str], total: int) -> dict[str, int]:
    """Divide the total evenly; the remainder goes to the first query types."""
    return {name: (total + len(query_types) - 1 - place) // len(query_types) for place, name in enumerate(query_types)}


def plan_cells(schema: Schema, wanted: Mapping[str, int], languages: Sequence[str], covered: Coverage) -> list[Cell]:
    """Plan cells; each is about the tables and foreign keys that are covered least by then.

    Args:
        schema: schema of the tables that questions may be about.
        wanted: number of cells by query type; the schema must allow these query types.
        languages: languages of the questions.
        covered: coverage of the existing questions; not modified.
    """
    planned, cells = deepcopy(covered), []
    for query_type, count in wanted.items():
        widths = _WIDTHS.get(query_type, (1,))
        for number in range(count):
            tables, keys = _focus(schema, widths[number % len(widths)], planned)
            language = min(languages, key=lambda name: planned.languages[name])
            cells.append(Cell(query_type, language, tables, tuple(key_name(key, schema.dialect) for key in keys)))
            planned.add(cells[-1])
    return cells


def _declared(schema: Schema) -> JoinGraph:
    """The graph of the foreign keys alone, which are what cells name."""
    return JoinGraph(replace(schema, discovered=()))


def _focus(schema: Schema, width: int, planned: Coverage) -> tuple[tuple[str, ...], list[ForeignKey]]:
    """The `width` least covered tables, and the foreign keys that join them.

    Joins grow greedily: start with the least covered key, then add the least covered key that joins one more table.
    If no key joins tables, the tables alone are chosen.
    """
    graph = _declared(schema)
    sizes = {key: len(graph.distances([key.table])) for key in schema.foreign_keys if width > 1}
    # A join cannot have more tables than are connected by foreign keys.
    reachable = min(width, max(sizes.values(), default=width))
    keys = [key for key, size in sizes.items() if size >= reachable]
    tables: list[str] = []
    chosen: list[ForeignKey] = []
    while keys and len(tables) < width:
        adjacent = [key for key in keys if not tables or (key.table in tables) != (key.referenced_table in tables)]
        if not adjacent:
            break
        key = min(adjacent, key=lambda key: planned.foreign_keys[key_name(key, schema.dialect)])
        chosen.append(key)
        tables += [name for name in dict.fromkeys((key.table, key.referenced_table)) if name not in tables]
    if not tables:
        tables = sorted((table.name for table in schema.tables), key=lambda name: planned.tables[name])[:width]
    return tuple(tables), chosen


def cell_of(schema: Schema, sql: str, query_type: str, language: str) -> Cell:
    """The cell that a query actually falls into, from its tables and join conditions."""
    try:
        query = parse(sql, schema.dialect)
        tables = list(query.find_all(exp.Table))
    except (SqlglotError, RecursionError):
        return Cell(query_type, language, (), ())
    names = {table.name.lower() for table in tables}
    by_alias: dict[str, set[str]] = {}
    for table in tables:
        by_alias.setdefault(table.alias_or_name.lower(), set()).add(table.name.lower())
    equalities = list(_equalities(query))

    def is_end(column: exp.Column, table: str, name: str) -> bool:
        is_there = table.lower() in (by_alias.get(column.table.lower(), set()) if column.table else names)
        return is_there and column.name.lower() == name.lower()

    def is_used(key: ForeignKey) -> bool:
        return any(
            is_end(left, key.table, key.column) and is_end(right, key.referenced_table, key.referenced_column)
            for pair in equalities
            for left, right in (pair, pair[::-1])
        )

    return Cell(
        query_type,
        language,
        tuple(table.name for table in schema.tables if table.name.lower() in names),
        tuple(key_name(key, schema.dialect) for key in schema.foreign_keys if is_used(key)),
    )


def _equalities(query: exp.Expr) -> Iterator[tuple[exp.Column, exp.Column]]:
    """The pairs of columns that a query equates: with =, USING, or IN with a subquery."""
    for node in query.walk():
        match node:
            case exp.EQ(this=exp.Column() as left, expression=exp.Column() as right):
                yield left, right
            case exp.Join():
                for name in node.args.get("using") or ():
                    column = exp.column(name.name)
                    yield column, column
            case exp.In(this=exp.Column() as left) if node.args.get("query"):
                select = first_select(node.args["query"])
                if select and select.selects and isinstance(select.selects[0], exp.Column):
                    yield left, select.selects[0]
