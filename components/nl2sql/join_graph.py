"""The joins of a schema as a graph: its foreign keys, and the joins that no key declares."""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from chatmetrics.components.nl2sql.descriptions import DiscoveredJoin
from chatmetrics.components.nl2sql.schema import ForeignKey, Schema, constraints

MAX_PATHS = 4


@dataclass(frozen=True, slots=True)
class Link:
    """A join, followed in one of its two directions.

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


class JoinGraph:
    """The joins of a schema, in both directions. Of paths of equal length, those by foreign keys come first."""

    def __init__(self, schema: Schema) -> None:
        self._distances: dict[tuple[str, ...], dict[str, int]] = {}
        self._links: dict[str, dict[Link, None]] = {table.name: {} for table in schema.tables}
        groups: list[Sequence[ForeignKey | DiscoveredJoin]] = [*constraints(schema.foreign_keys)]
        groups += [[join] for join in schema.discovered]
        for joins in groups:
            start, end = joins[0].table, joins[0].referenced_table
            pairs = tuple((join.column, join.referenced_column) for join in joins)
            self._links[start][Link(start, end, pairs)] = None
            self._links[end][Link(end, start, tuple((second, first) for first, second in pairs))] = None

    def neighbors(self, table: str) -> Iterable[str]:
        """The other tables that one join leads to."""
        return dict.fromkeys(link.end for link in self._links[table] if link.end != table)

    def distances(self, starts: Collection[str]) -> dict[str, int]:
        """Number of joins on the shortest path from any of `starts` to each table that can be reached."""
        key = tuple(starts)
        if key not in self._distances:  # a search asks for the same ones again and again
            found = dict.fromkeys(key, 0)
            queue = deque(found)
            while queue:
                table = queue.popleft()
                for neighbor in self.neighbors(table):
                    if neighbor not in found:
                        found[neighbor] = found[table] + 1
                        queue.append(neighbor)
            self._distances[key] = found
        return self._distances[key]

    def path(self, starts: Collection[str], target: str, longest: int) -> list[str]:
        """The tables on a shortest path from any of `starts` to `target`, both ends included; empty if it is too long.

        Args:
            starts: tables.
            target: a table.
            longest: the maximum number of joins on the path.
        """
        before: dict[str, str | None] = {target: None}
        queue = deque([(target, 0)])
        while queue:
            table, length = queue.popleft()
            if table in starts:
                found = [table]
                while (following := before[found[-1]]) is not None:
                    found.append(following)
                return found
            if length < longest:
                for neighbor in self.neighbors(table):
                    if neighbor not in before:
                        before[neighbor] = table
                        queue.append((neighbor, length + 1))
        return []

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
