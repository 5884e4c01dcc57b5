"""How relevant the tables and columns of a schema are for a question, without a model."""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from chatmetrics.components.nl2sql.join_graph import JoinGraph
from chatmetrics.components.nl2sql.linking.found_values import ColumnName, FoundValue
from chatmetrics.components.nl2sql.linking.words import asked_words, words
from chatmetrics.components.nl2sql.schema import Schema

# What a word counts: in a name, in a description, as the beginning of another word; and a value that is found.
NAME, DESCRIPTION, BEGINNING, VALUE = 1.0, 0.6, 0.5, 3.0
# What counts for a table: its own name, and its columns, each less than the one before.
TABLE, COLUMN_IN_TABLE = 2.0, 0.5
RELEVANT = 0.5  # of the best table's score
LONGEST_PATH = 3  # foreign keys between relevant tables
LONGEST_VALUE = 6  # words
SHORTEST_BEGINNING = 4  # letters


@dataclass(slots=True)
class Ranking:
    """Tables and columns of a question.

    Attributes:
        tables: all tables, the most relevant first.
        relevant: how many of `tables` the question names, or are on a path between two of those.
        scores: of tables; 0 if nothing connects a table with the question.
        columns: scores of the columns that match.
        values: values that the question names, by column.
    """

    tables: list[str]
    relevant: int
    scores: dict[str, float]
    columns: dict[ColumnName, float]
    values: dict[ColumnName, list[FoundValue]]


class SchemaIndex:
    """Finds the tables and columns that a question names; built once for a schema."""

    def __init__(self, schema: Schema) -> None:
        self._order = {table.name: number for number, table in enumerate(schema.tables)}
        self.graph = JoinGraph(schema)
        self._tables: dict[str, list[tuple[str, float]]] = defaultdict(list)
        self._columns: dict[str, list[tuple[ColumnName, float]]] = defaultdict(list)
        self._values: dict[tuple[str, ...], list[tuple[ColumnName, str]]] = defaultdict(list)
        for table in schema.tables:
            for word, share in _shares(table.name, table.description).items():
                self._tables[word].append((table.name, share))
            for column in table.columns:
                name = (table.name, column.name)
                for word, share in _shares(column.name, column.description).items():
                    self._columns[word].append((name, share))
                for value in column.samples:
                    if key := tuple(words(value)):
                        self._values[key].append((name, value))
        self._idf = {
            word: math.log(1 + len(self._order) / len({name[0] for name, _ in found}))
            for word, found in self._columns.items()
        }
        self._table_idf = {word: math.log(1 + len(self._order) / len(found)) for word, found in self._tables.items()}
        self._words = sorted({*self._columns, *self._tables})
        self._relevance: dict[str, float] = {}

    def rank(self, question: str, found: Sequence[FoundValue] = ()) -> Ranking:
        """Rank all tables for a question, in any language.

        Args:
            question: the question, with its evidence.
            found: the values of the database that it names; its sample values are found here.
        """
        asked = asked_words(question)
        columns: dict[ColumnName, float] = defaultdict(float)
        named: dict[str, float] = defaultdict(float)
        for word, weight in asked.items():
            for known, similarity in self._similar(word):
                for name, share in self._columns.get(known, ()):
                    columns[name] += weight * similarity * share * self._idf[known]
                for table, share in self._tables.get(known, ()):
                    named[table] += weight * similarity * share * self._table_idf[known]
        values: dict[ColumnName, list[FoundValue]] = defaultdict(list)
        for value in found:
            values[value.table, value.column].append(value)
        for name, sample in self._found_values(words(question)):
            values[name] = values[name] or [FoundValue(*name, sample, sample)]
        for name, of_column in values.items():
            columns[name] += VALUE * max(value.similarity for value in of_column)
        return self._ranked(columns, named, values)

    def relevance(self, word: str) -> float:
        """How much a word says about the schema: the most that it counts for a table or column; 0 for other words."""
        if word not in self._relevance:
            found = [
                similarity * share * idf[known]
                for known, similarity in self._similar(word)
                for items, idf in ((self._columns, self._idf), (self._tables, self._table_idf))
                for _, share in items.get(known, ())
            ]
            self._relevance[word] = max(found, default=0.0)
        return self._relevance[word]

    def values_in(self, asked: list[str]) -> set[str]:
        """The sample values that a text names, except numbers.

        Args:
            asked: the words of the text, see `words`.
        """
        return {value for _, value in self._found_values(asked) if any(map(str.isalpha, value))}

    def _similar(self, word: str) -> Iterable[tuple[str, float]]:
        yield word, 1.0
        if len(word) < SHORTEST_BEGINNING or word.isdigit():
            return
        for length in range(SHORTEST_BEGINNING, len(word)):
            yield word[:length], BEGINNING
        for known in islice(self._words, bisect_right(self._words, word), None):
            if not known.startswith(word):
                break
            yield known, BEGINNING

    def _found_values(self, asked: list[str]) -> Iterable[tuple[ColumnName, str]]:
        for start in range(len(asked)):
            for end in range(start + 1, min(start + LONGEST_VALUE, len(asked)) + 1):
                yield from self._values.get(tuple(asked[start:end]), ())

    def _ranked(
        self, columns: dict[ColumnName, float], named: dict[str, float], values: dict[ColumnName, list[FoundValue]]
    ) -> Ranking:
        best: dict[str, list[float]] = defaultdict(list)
        for (table, _), score in columns.items():
            best[table].append(score)
        scores = {table: TABLE * named.get(table, 0.0) for table in self._order}
        for table, found in best.items():
            scores[table] += COLUMN_IN_TABLE * sum(
                score / rank for rank, score in enumerate(sorted(found, reverse=True), 1)
            )
        ordered = sorted(self._order, key=lambda table: (-scores[table], self._order[table]))
        limit = RELEVANT * max(scores.values(), default=0.0)
        relevant = [table for table in ordered if scores[table] > limit]
        return Ranking(*self._connected(ordered, relevant), scores, dict(columns), dict(values))

    def _connected(self, ordered: list[str], relevant: list[str]) -> tuple[list[str], int]:
        """The tables with those that connect relevant ones before the others, and how many these are."""
        found: dict[str, None] = {}
        for table in relevant:
            path = self.graph.path(found, table, LONGEST_PATH) if found else [table]
            found |= dict.fromkeys(path or [table])
        number = len(found)
        neighbors = {neighbor for table in found for neighbor in self.graph.neighbors(table)} - found.keys()
        near = [table for table in ordered if table in neighbors]
        far = [table for table in ordered if table not in found and table not in neighbors]
        return [*found, *near, *far], number


def _shares(name: str, description: str) -> dict[str, float]:
    """The words of a name and its description, with their shares of it."""
    own = words(name)
    shares = {word: DESCRIPTION / math.sqrt(len(own) or 1) for word in words(description)}
    return shares | {word: NAME / math.sqrt(len(own)) for word in own}
