"""The graph of a schema: its tables, and the foreign keys that join them."""

from collections import deque
from collections.abc import Collection, Iterable

from chatmetrics.components.nl2sql.schema import ForeignKey


class JoinGraph:
    """Tables and the foreign keys between them, which are followed in both directions.

    Args:
        tables: names of the tables.
        keys: foreign keys; those of other tables are ignored.
    """

    def __init__(self, tables: Iterable[str], keys: Iterable[ForeignKey]) -> None:
        self._neighbors: dict[str, list[str]] = {table: [] for table in tables}
        for key in keys:
            ends = key.table, key.referenced_table
            if ends[0] != ends[1] and all(end in self._neighbors for end in ends):
                self._neighbors[ends[0]].append(ends[1])
                self._neighbors[ends[1]].append(ends[0])

    def neighbors(self, table: str) -> list[str]:
        """The tables that one foreign key joins to a table."""
        return self._neighbors[table]

    def path(self, starts: Collection[str], target: str, longest: int) -> list[str]:
        """The tables on a shortest path from any of `starts` to `target`, both ends included; empty if it is too long.

        Args:
            starts: tables.
            target: a table.
            longest: the maximum number of foreign keys on the path.
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
                for neighbor in self._neighbors[table]:
                    if neighbor not in before:
                        before[neighbor] = table
                        queue.append((neighbor, length + 1))
        return []
