"""The foreign keys of a schema as a graph, and the shortest paths of joins in it."""

from collections.abc import Collection
from dataclasses import dataclass

from chatmetrics.components.nl2sql.schema import ForeignKey, Schema

MAX_PATHS = 4


@dataclass(frozen=True, slots=True)
class Link:
    """A foreign key, followed in one of its two directions.

    Attributes:
        start: the table to start from.
        end: the table that it leads to.
        columns: pairs of a column of `start` and the one of `end` that it equals.
    """

    start: str
    end: str
    columns: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its columns."""
        return tuple(name for pair in self.columns for name in pair)


Path = tuple[Link, ...]


class KeyGraph:
    """The foreign keys of a schema, in both directions."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._distances: dict[tuple[str, ...], dict[str, int]] = {}
        constraints: dict[object, list[ForeignKey]] = {}
        for key in schema.foreign_keys:
            constraints.setdefault((key.table, key.constraint) if key.constraint else key, []).append(key)
        self._links: dict[str, dict[Link, None]] = {table.name: {} for table in schema.tables}
        for keys in constraints.values():
            start, end = keys[0].table, keys[0].referenced_table
            pairs = tuple((key.column, key.referenced_column) for key in keys)
            self._links[start][Link(start, end, pairs)] = None
            self._links[end][Link(end, start, tuple((second, first) for first, second in pairs))] = None

    def distances(self, starts: Collection[str]) -> dict[str, int]:
        """See `Schema.distances`; a search asks for the same ones again and again."""
        key = tuple(starts)
        if key not in self._distances:
            self._distances[key] = self._schema.distances(key)
        return self._distances[key]

    def paths(self, starts: Collection[str], end: str) -> list[Path]:
        """The shortest paths from any of the tables to `end`, at most `MAX_PATHS`; [] if none leads there."""
        reached = set(starts)
        paths: list[Path] = [(link,) for start in dict.fromkeys(starts) for link in self._links[start]]
        while paths:
            found = [path for path in paths if path[-1].end == end]
            if found:
                return found[:MAX_PATHS]
            reached |= {path[-1].end for path in paths}
            # Several paths to one table remain, since each may lead on to the end.
            paths = [
                (*path, link)
                for path in paths[: MAX_PATHS * len(self._links)]
                for link in self._links[path[-1].end]
                if link.end not in reached
            ]
        return []
