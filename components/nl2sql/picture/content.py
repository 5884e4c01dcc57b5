"""What a picture of a schema has: boxes for tables or clusters, and the joins between them."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chatmetrics.components.nl2sql.descriptions import DiscoveredJoin
from chatmetrics.components.nl2sql.join_graph import JoinGraph
from chatmetrics.components.nl2sql.linking.found_values import ColumnName, FoundValue
from chatmetrics.components.nl2sql.picture.boxes import Box, Row
from chatmetrics.components.nl2sql.picture.clusters import cluster_tables
from chatmetrics.components.nl2sql.schema import Column, ForeignKey, Schema, Table, constraints

MOST_TABLES = 40  # with their columns
MOST_CLUSTERS = 40
MOST_COLUMNS, MOST_KEYS = 8, 24  # of a table; keys come before other columns
LISTED = 6  # tables of a cluster
OTHERS = "other tables"  # that are in no cluster
MOST_LINES = 120  # between clusters
MOST_DIGITS = 3  # of the number of joins, by which a line is thicker


@dataclass(frozen=True, slots=True)
class ShownPart:
    """What a prompt shows for a question.

    Attributes:
        question: the question.
        part: the part of the schema that is shown.
        relevant: the tables that the question names, and those that connect them.
        scores: of tables.
        values: values that the question names, by table and column.
    """

    question: str
    part: Schema
    relevant: Collection[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[ColumnName, Sequence[FoundValue]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Join:
    """A line between two boxes.

    Attributes:
        start: number of a box.
        end: number of a box.
        columns: the columns where the line begins and ends; empty without one.
        text: untrusted text that explains the line.
        label: text next to the line, of ours.
        style: classes of the style sheet.
        is_directed: whether the line is an arrow.
    """

    start: int
    end: int
    columns: tuple[str, str]
    text: str
    label: str = ""
    style: str = ""
    is_directed: bool = True


@dataclass(frozen=True, slots=True)
class Content:
    """Boxes, the joins between them, and the number of joins between clusters that are not drawn."""

    boxes: list[Box]
    joins: list[Join]
    omitted_joins: int


def content_of(schema: Schema, shown: ShownPart | None) -> Content:
    """The boxes and joins of a schema, see `draw_schema`."""
    names = [table.name for table in schema.tables]
    drawn = set(names) if len(names) <= MOST_TABLES else _best(names, shown)
    clusters, others = _clusters([name for name in names if name not in drawn], JoinGraph(schema), drawn)
    tables = _Tables(schema, shown)
    boxes = [tables.box(table) for table in schema.tables if table.name in drawn]
    box_of = {name: number for number, name in enumerate(name for name in names if name in drawn)}
    sizes = {table.name: len(table.columns) for table in schema.tables}
    for title, cluster in [*((cluster[0], cluster) for cluster in clusters), *([(OTHERS, others)] if others else [])]:
        box_of |= dict.fromkeys(cluster, len(boxes))
        boxes.append(_cluster_box(title, cluster, sizes, "left" if shown else ""))
    joins = list(_table_joins(schema, shown, {name: box_of[name] for name in names if name in drawn}))
    declared = (key for key, *_ in constraints(schema.foreign_keys))
    keys: list[ForeignKey | DiscoveredJoin] = [*declared, *schema.discovered]
    between = _cluster_joins(keys, box_of, drawn, "dim" if shown else "")
    return Content(boxes, joins + between[:MOST_LINES], len(between[MOST_LINES:]))


def _best(names: Iterable[str], shown: ShownPart | None) -> set[str]:
    """The tables of a large schema that are drawn with their columns."""
    if not shown:
        return set()
    part = {table.name for table in shown.part.tables}
    best = sorted(part.intersection(names), key=lambda name: (-shown.scores.get(name, 0.0), name))
    return set(best[:MOST_TABLES])


def _clusters(names: Sequence[str], graph: JoinGraph, drawn: Collection[str]) -> tuple[list[list[str]], list[str]]:
    """The clusters of tables that get a box, and the tables that are in none of them.

    If some tables are drawn with their columns, these are the clusters to which foreign keys lead from there.
    """
    size = max(MOST_TABLES, 2 * len(names) // MOST_CLUSTERS)
    clusters = cluster_tables(names, graph, size)
    if drawn:
        near = {neighbor for name in drawn for neighbor in graph.neighbors(name)}
        clusters = [cluster for cluster in clusters if not near.isdisjoint(cluster)]
    kept = {name for cluster in clusters[:MOST_CLUSTERS] for name in cluster}
    return clusters[:MOST_CLUSTERS], [name for name in names if name not in kept]


class _Tables:
    """Makes the boxes of tables."""

    def __init__(self, schema: Schema, shown: ShownPart | None) -> None:
        self._shown = shown
        self._part = {table.name: table for table in shown.part.tables} if shown else {}
        self._referring = {(key.table, key.column) for key in schema.foreign_keys}
        self._joining = {(key.table, key.column) for key in schema.joins}
        self._joining |= {(key.referenced_table, key.referenced_column) for key in schema.joins}

    def box(self, table: Table) -> Box:
        """The box of a table, in the style that its part in the question gives it."""
        styles, notes = ["view" if table.kind else ""], [table.kind.partition(" (")[0]]
        if self._shown:
            styles.append("main" if table.name in self._shown.relevant else "" if table.name in self._part else "left")
            score = self._shown.scores.get(table.name, 0.0)
            notes.append(f"{score:.1f}" if score else "")
        return Box(table.name, list(self._rows(table)), " ".join(filter(None, notes)), " ".join(filter(None, styles)))

    def _rows(self, table: Table) -> Iterator[Row]:
        """The columns that are drawn, keys first; values are below the columns in which they were found."""
        values = self._shown.values if self._shown else {}
        columns = sorted(self._columns(table), key=lambda column: self._rank(table, column))
        keys = sum(self._is_key(table, column) for column in columns)
        columns = columns[: max(MOST_COLUMNS, min(keys, MOST_KEYS))]
        for column in columns:
            name = (table.name, column.name)
            marks = ["PK" if column.primary_key else "", "FK" if name in self._referring else ""]
            # What is in parentheses is long, and is the values of an enumeration.
            kind = column.type.partition("(")[0].strip()
            yield Row(column.name, " ".join(filter(None, marks)), kind, column=column.name)
            for found in () if column.private else values.get(name, ()):
                yield Row(f"= {found.value}", "", style="found")
        if left := len(table.columns) - len(columns):
            yield Row(f"… {left:,} more", "", style="soft")

    def _columns(self, table: Table) -> list[Column]:
        """The columns that may be drawn: those that are shown, and the keys of a table that is left out."""
        if not self._shown:
            return list(table.columns)
        if table.name not in self._part:
            return [column for column in table.columns if self._is_key(table, column)]
        shown = {column.name for column in self._part[table.name].columns}
        return [column for column in table.columns if column.name in shown]

    def _rank(self, table: Table, column: Column) -> int:
        if self._is_key(table, column):
            return 0 if column.primary_key else 1
        return 2 if self._shown and (table.name, column.name) in self._shown.values else 3

    def _is_key(self, table: Table, column: Column) -> bool:
        return bool(column.primary_key) or (table.name, column.name) in self._joining


def _cluster_box(title: str, tables: Sequence[str], sizes: Mapping[str, int], style: str) -> Box:
    columns = sum(sizes[table] for table in tables)
    listed = tables if title == OTHERS else tables[1:]
    rows = [Row(f"{len(tables):,} tables, {columns:,} columns", style="soft"), *map(Row, listed[:LISTED])]
    left = len(listed) - LISTED
    return Box(title, [*rows, *([Row(f"… {left:,} more", style="soft")] if left > 0 else [])], "", style, True)


def _table_joins(schema: Schema, shown: ShownPart | None, box_of: Mapping[str, int]) -> Iterator[Join]:
    """The joins between tables that are drawn with their columns."""
    part = {table.name for table in shown.part.tables} if shown else box_of.keys()
    for keys in constraints(schema.foreign_keys):
        key = keys[0]
        ends = {key.table, key.referenced_table}
        if ends <= box_of.keys():
            style = "path" if shown and ends <= set(shown.relevant) else "" if ends <= part else "dim"
            columns = key.column, key.referenced_column
            yield Join(box_of[key.table], box_of[key.referenced_table], columns, _condition(keys), style=style)
    for join in schema.discovered:
        if {join.table, join.referenced_table} <= box_of.keys():
            start, end = box_of[join.table], box_of[join.referenced_table]
            text = f"{_condition([join])} (discovered, {join.score:.2f})"
            columns = join.column, join.referenced_column
            yield Join(start, end, columns, text, f"{join.score:.2f}", "dots", is_directed=False)


def _cluster_joins(
    keys: Iterable[ForeignKey | DiscoveredJoin], box_of: Mapping[str, int], drawn: Collection[str], style: str
) -> list[Join]:
    """The lines that end at a cluster, those that stand for most joins first."""
    numbers = Counter(
        tuple(sorted((box_of[key.table], box_of[key.referenced_table])))
        for key in keys
        if {key.table, key.referenced_table} <= box_of.keys() and not {key.table, key.referenced_table} <= set(drawn)
    )
    return [
        Join(
            *(start, end),
            columns=("", ""),
            text=f"{number:,} join{'' if number == 1 else 's'}",
            label=f"{number:,}" if number > 1 else "",
            style=f"w{min(len(str(number)), MOST_DIGITS)} {style}".strip(),
            is_directed=False,
        )
        for (start, end), number in numbers.most_common()
        if start != end
    ]


def _condition(keys: Iterable[ForeignKey | DiscoveredJoin]) -> str:
    return " AND ".join(f"{key.table}.{key.column} = {key.referenced_table}.{key.referenced_column}" for key in keys)
