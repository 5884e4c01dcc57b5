"""The part of a schema that a prompt shows for a question, when the whole schema does not fit."""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from itertools import accumulate, chain, count, islice
from typing import NamedTuple

from chatmetrics.components.nl2sql.linking.found_values import ColumnName, FoundValue
from chatmetrics.components.nl2sql.linking.ranking import Ranking, SchemaIndex
from chatmetrics.components.nl2sql.schema import Column, Schema, SchemaForm, Table

Excess = Callable[[str], float]
Measure = Callable[[Sequence["_Item"]], tuple[float, int]]  # by how many tokens items are too long; their characters
ValuesByColumn = Mapping[ColumnName, Sequence[str]]

TOKENS_PER_CHARACTER = 0.25  # of a schema, as a first guess
NEAR_ENOUGH = 1 / 500  # tokens that may be left, for each character that is shown
MOST_CHARACTERS = 10  # of a token, on average
MAX_GUESSES = 6
MAX_STARTS = 8  # tables that are tried, until a part of one fits
MAX_SKIPS = 3  # items that do not fit, after which others are tried
WORTH_FILLING = 0.05  # of what is shown
MAX_NAMED = 8  # columns that come with their table, because the question names them


class _Kind(Enum):
    """What an item shows of its columns: themselves, the values that the question names, or as many as there are."""

    COLUMNS = auto()
    NAMED_VALUES = auto()
    VALUES = auto()


class _Item(NamedTuple):
    """Columns of a table, or values of them.

    Attributes:
        table: the table's number.
        columns: numbers of its columns.
        kind: what is shown of them.
        size: about how many characters it takes.
    """

    table: int
    columns: tuple[int, ...]
    kind: _Kind
    size: int


class _Columns(NamedTuple):
    """A table's items.

    Attributes:
        first: its keys, and columns that the question names.
        rest: its other columns.
        named_values: the values that the question names, of columns with sample values.
        first_values: the sample values of the first columns, after those values.
        rest_values: those of the other columns.
    """

    first: _Item
    rest: Sequence[_Item]
    named_values: Sequence[_Item]
    first_values: Sequence[_Item]
    rest_values: Sequence[_Item]


class Pruner:
    """Prunes one schema for many questions.

    What does not fit is left out in this order: sample values, columns that no key needs, tables; of each kind those
    first that have least to do with the question.

        shown first   tables that the question names, and tables that join them: keys, and columns that it names
                      the values of their columns that the question names
                      other columns of these tables
                      other tables, neighbors first: keys, and columns that the question names
                      other columns of other tables
                      sample values of keys and of columns that the question names
        shown last    other sample values

    Args:
        schema: the whole schema.
        form: form of the rendered schema.
        index: that of the schema, if it is at hand.
    """

    def __init__(self, schema: Schema, form: SchemaForm, index: SchemaIndex | None = None) -> None:
        self.schema, self._form = schema, form
        self._index = index or SchemaIndex(schema)
        self._numbers = {table.name: number for number, table in enumerate(schema.tables)}
        self._keys: dict[str, set[str]] = defaultdict(set)
        for key in schema.joins:
            self._keys[key.table].add(key.column)
            self._keys[key.referenced_table].add(key.referenced_column)
        self._overhead = [len(f"CREATE TABLE {table.name} (\n\n);\n") for table in schema.tables]
        for key in schema.foreign_keys:
            names = key.column, key.referenced_table, key.referenced_column
            self._overhead[self._numbers[key.table]] += len("FOREIGN KEY () REFERENCES  (),\n") + sum(map(len, names))
        self._bare = [[_without_values(column) for column in table.columns] for table in schema.tables]
        self._alone, self._values = (
            [[self._item(number, place, kind) for place in places] for number, places in self._places()]
            for kind in (_Kind.COLUMNS, _Kind.VALUES)
        )
        self._unnamed = [self._split(number, {}, {}) for number in range(len(schema.tables))]

    def rank(self, question: str, found: Sequence[FoundValue] = ()) -> Ranking:
        """How relevant the tables and columns are for a question, which names these values."""
        return self._index.rank(question, found)

    def prune(self, question: str, excess: Excess, found: Sequence[FoundValue] = ()) -> Schema | None:
        """The part of the schema that fits, which is all of it if that fits; None if no part of the best tables does.

        Args:
            question: the question, with its evidence. The gold query is not used, so that training and `ask` show the
                same.
            excess: by how many tokens a rendered schema is too long; at most 0 if it fits. It must not be less for a
                longer text.
            found: the values of the database that the question names. A shown column has them as its first values, if
                it has sample values.
        """
        ranking = self.rank(question, found)
        values = {name: [value.value for value in of_column] for name, of_column in ranking.values.items()}

        def measure(items: Sequence[_Item]) -> tuple[float, int]:
            text = self._part(items, values).render(self._form)
            return excess(text), len(text)

        supply = self._items(ranking)
        items, over = self._start(supply, measure)
        if not items:
            return None
        number, left_out, only = 1, set[int](), set[int]()

        def is_wanted(item: _Item) -> bool:
            return item.table in only if only else item.table not in left_out

        for skips in range(1, MAX_SKIPS + 2):
            number, over = self._grown(items, filter(is_wanted, supply), measure, number, over)
            shown = items[:number]
            if number == len(items) or items[number].size < WORTH_FILLING * sum(item.size for item in shown):
                break
            # This item does not fit, but others after it may; in the end, more of the tables that are shown.
            tables = {item.table for item in shown}
            left_out |= {items[number].table} - tables
            only = tables if skips == MAX_SKIPS else set()
            items = [*shown, *filter(is_wanted, items[number + 1 :])]
        return self._part(items[:number], values)

    def _start(self, supply: Iterator[_Item], measure: Measure) -> tuple[list[_Item], float]:
        """The first columns that fit, with others of their table after them; nothing if none of a few tables does."""
        tables = (item for item in supply if item.kind is _Kind.COLUMNS)
        for item in islice(tables, MAX_STARTS):
            alone = sorted((self._alone[item.table][place] for place in item.columns), key=lambda part: part.size)
            for start in ([item], alone):
                if (over := measure(start[:1])[0]) <= 0:
                    return start, over
        return [], 0.0

    def _grown(
        self, items: list[_Item], supply: Iterator[_Item], measure: Measure, number: int, over: float
    ) -> tuple[int, float]:
        """As `_largest`, of the items and as many of the supply as may fit, which are added to them."""
        while True:
            if number == len(items):
                items += _smaller(supply, -over * MOST_CHARACTERS)
                if number == len(items):
                    return number, over
            number, over = self._largest(items, measure, number, over)
            if number < len(items):
                return number, over

    def _largest(self, items: list[_Item], measure: Measure, low: int, over: float) -> tuple[int, float]:
        """The largest number of items that fit, and their excess; by bisection, with guesses from the sizes.

        It ends early if almost none are left of many tokens (`NEAR_ENOUGH`), since counting takes most of the time.

        Args:
            items: the items.
            measure: measures items.
            low: a number that fits.
            over: its excess.
        """
        sizes = [0, *accumulate(item.size for item in items)]
        high = len(items) + 1  # does not fit
        best, size, rate = over, sizes[low], TOKENS_PER_CHARACTER
        for trial in count():
            if high - low == 1:
                break
            is_usable = trial < MAX_GUESSES and math.isfinite(over) and rate > 0
            guess = bisect_right(sizes, size - over / rate) - 1 if is_usable else (low + high) // 2
            guess = min(max(guess, low + 1), high - 1)
            before = size, over
            over, characters = measure(items[:guess])
            size = sizes[guess]
            if over > 0:
                high = guess
            else:
                low, best = guess, over
                if over >= -NEAR_ENOUGH * characters:
                    break
            if size != before[0]:
                rate = (over - before[1]) / (size - before[0])
        return low, best

    def _items(self, ranking: Ranking) -> Iterator[_Item]:
        """All items, those first that are shown first."""
        named: dict[str, dict[str, float]] = defaultdict(dict)
        for (table, column), score in ranking.columns.items():
            named[table][column] = score

        def columns_of(name: str) -> _Columns:
            number = self._numbers[name]
            return self._split(number, named[name], ranking.values) if name in named else self._unnamed[number]

        relevant = list(map(columns_of, ranking.tables[: ranking.relevant]))
        yield from (columns.first for columns in relevant)
        yield from chain.from_iterable(columns.named_values for columns in relevant)
        yield from chain.from_iterable(columns.rest for columns in relevant)
        others: list[_Columns] = []
        for name in ranking.tables[ranking.relevant :]:  # one after the other, because few of many tables fit
            others.append(columns_of(name))
            yield others[-1].first
        tables = [*relevant, *others]
        yield from chain.from_iterable(columns.rest for columns in others)
        yield from chain.from_iterable(columns.named_values for columns in others)
        yield from chain.from_iterable(columns.first_values for columns in tables)
        yield from chain.from_iterable(columns.rest_values for columns in tables)

    def _split(
        self, number: int, scores: dict[str, float], found: Mapping[ColumnName, Sequence[FoundValue]]
    ) -> _Columns:
        table = self.schema.tables[number]
        keys = self._keys[table.name]
        # sorted() is stable: columns that the question does not name stay in the order of the schema.
        ordered = sorted(range(len(table.columns)), key=lambda place: -scores.get(table.columns[place].name, 0.0))
        named = [place for place in ordered[:MAX_NAMED] if table.columns[place].name in scores]
        chosen = {place for place, column in enumerate(table.columns) if column.primary_key or column.name in keys}
        chosen = chosen.union(named) or {0}
        first = [place for place in ordered if place in chosen]
        rest = [place for place in ordered if place not in chosen]
        alone, values = self._alone[number], self._values[number]
        valued = [place for place in first if table.columns[place].samples]
        named_values = {place: found.get((table.name, table.columns[place].name), ()) for place in valued}
        size = self._overhead[number] + sum(alone[place].size for place in first)
        return _Columns(
            _Item(number, tuple(first), _Kind.COLUMNS, size),
            [alone[place] for place in rest],
            [
                _Item(number, (place,), _Kind.NAMED_VALUES, sum(len(value.value) + 2 for value in found_values))
                for place, found_values in named_values.items()
                if found_values
            ],
            [values[place] for place in valued],
            [values[place] for place in rest if table.columns[place].samples],
        )

    def _places(self) -> Iterator[tuple[int, range]]:
        return ((number, range(len(table.columns))) for number, table in enumerate(self.schema.tables))

    def _item(self, number: int, place: int, kind: _Kind) -> _Item:
        column = self.schema.tables[number].columns[place]
        texts = column.samples if kind is _Kind.VALUES else (column.name, column.type, column.description)
        return _Item(number, (place,), kind, sum(len(text) + 2 for text in texts))

    def _part(self, items: Sequence[_Item], found: ValuesByColumn) -> Schema:
        """The schema with these items, in its own order; the values that are found are the first ones."""
        places = {kind: defaultdict[int, set[int]](set) for kind in _Kind}
        for item in items:
            places[item.kind][item.table].update(item.columns)
        shown = places[_Kind.COLUMNS]
        tables = [
            self._table(number, shown[number], places[_Kind.NAMED_VALUES][number], places[_Kind.VALUES][number], found)
            for number in sorted(shown)
        ]
        names = {table.name: set(table.column_names) for table in tables}
        keys = [key for key in self.schema.foreign_keys if key.table in names and key.referenced_table in names]
        # A table has the columns of its keys, unless they alone are too long.
        incomplete = {
            (key.table, key.constraint or key)
            for key in keys
            if key.column not in names[key.table] or key.referenced_column not in names[key.referenced_table]
        }
        keys = [key for key in keys if (key.table, key.constraint or key) not in incomplete]
        joins = (join for join in self.schema.discovered if join.table in names and join.referenced_table in names)
        shown_joins = tuple(
            join
            for join in joins
            if join.column in names[join.table] and join.referenced_column in names[join.referenced_table]
        )
        return replace(self.schema, tables=tuple(tables), foreign_keys=tuple(keys), discovered=shown_joins)

    def _table(self, number: int, shown: set[int], named: set[int], valued: set[int], found: ValuesByColumn) -> Table:
        table, bare = self.schema.tables[number], self._bare[number]

        def column(place: int) -> Column:
            whole = table.columns[place]
            values = found.get((table.name, whole.name), ()) if place in named or place in valued else ()
            # As many as the column has sample values: none, if prompts show none.
            samples = dict.fromkeys((*values, *whole.samples) if place in valued else values)
            return replace(whole, samples=tuple(samples)[: len(whole.samples)]) if samples else bare[place]

        return replace(table, columns=tuple(map(column, sorted(shown))))


def _smaller(supply: Iterator[_Item], size: float) -> Iterator[_Item]:
    """The next items, until they have that size together."""
    for item in supply:
        yield item
        size -= item.size
        if size < 0:
            return


def _without_values(column: Column) -> Column:
    return replace(column, samples=()) if column.samples else column
