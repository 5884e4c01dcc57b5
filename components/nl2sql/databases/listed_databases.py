"""Databases at several addresses, perhaps in several dialects, each with its own name."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType, TracebackType
from typing import Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.addresses import ListedDatabase
from chatmetrics.components.nl2sql.databases.databases import Databases, open_databases
from chatmetrics.components.nl2sql.databases.execution import MAX_ROWS, Result
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.schema import Schema


class ListedDatabases(Databases):
    """The databases of a list.

    Args:
        listed: the databases by name.
        query_seconds: time limit of a query.
        descriptions: what is known about databases that they do not contain, by name.
        max_rows: a result with more rows counts as over memory.
        connections: number of threads that may run queries on a database at once.
    """

    def __init__(
        self,
        listed: Mapping[str, ListedDatabase],
        query_seconds: float,
        descriptions: Mapping[str, Descriptions] = MappingProxyType({}),
        max_rows: int = MAX_ROWS,
        connections: int = 1,
    ) -> None:
        self._listed, self._query_seconds, self._descriptions = listed, query_seconds, descriptions
        self._max_rows, self._connections = max_rows, connections
        self._opened: dict[str, Databases] = {}  # by address

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for databases in self._opened.values():
            databases.__exit__(kind, error, trace)

    def another(self) -> Self:
        """Copy with its own connections and processes."""
        descriptions = self._descriptions or {}
        return type(self)(self._listed, self._query_seconds, descriptions, self._max_rows, self._connections)

    def check(self, db_id: str) -> None:
        """Connect to a database.

        Raises:
            InputError: it is not in the list, is not available, or its account may do more than read tables.
        """
        self._at(db_id).check(db_id)

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries on a database.

        Raises:
            InputError: as `check`.
            ServiceError: the connection was lost.
        """
        return self._at(db_id).execute(db_id, queries)

    @contextmanager
    def snapshot(self, db_ids: Iterable[str]) -> Iterator[None]:
        """Context manager: all queries on these databases see one state of each, where the server can do that."""
        together = defaultdict(list)
        for db_id in db_ids:
            self._at(db_id)
            together[self._listed[db_id].place].append(db_id)
        with ExitStack() as stack:
            for address, names in together.items():
                stack.enter_context(self._opened[address].snapshot(names))
            yield

    def structure(self, db_id: str, sample_values: int = 0) -> Schema:
        """The tables that the list names, or all, and the foreign keys between them; see `Databases.structure`."""
        schema, tables = self._at(db_id).structure(db_id, sample_values), self._listed[db_id].tables
        if not tables:
            return schema
        unknown = {name.lower() for name in tables} - {table.name.lower() for table in schema.tables}
        if unknown:
            raise InputError(f"database {db_id!r} has no table {min(unknown)!r}, which the list of databases names")
        return schema.prune(tables)

    def _at(self, db_id: str) -> Databases:
        """The databases at the address of one."""
        if db_id not in self._listed:
            raise InputError(f"database {db_id!r} is not in the list of databases, which has {', '.join(self._listed)}")
        address = self._listed[db_id].place
        if address not in self._opened:
            self._opened[address] = open_databases(
                address, self._query_seconds, self._descriptions, self._max_rows, self._connections
            )
        return self._opened[address]
