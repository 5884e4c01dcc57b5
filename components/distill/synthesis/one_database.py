"""Synthesis for one database: which questions to ask for, and which of the answers to keep."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from pydantic import BaseModel

from chatmetrics.components import console
from chatmetrics.components.distill.answers.verification import is_empty, rows_in
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.synthesis.parse_pairs import parse_pairs
from chatmetrics.components.distill.synthesis.prompts import synthesis_messages, terms_text
from chatmetrics.components.distill.synthesis.question_plan import (
    Cell,
    Coverage,
    cell_of,
    even_shares,
    key_name,
    plan_cells,
    possible_query_types,
)
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.distill.teacher_schemas import TeacherSchemas
from chatmetrics.components.nl2sql.databases.databases import Databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.canonical import canonical
from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES, query_type_of
from chatmetrics.components.nl2sql.sql.similarity import question_similarity, words_of

MAX_EARLIER_QUESTIONS = 40  # in a prompt, as questions not to repeat


class PairRejection(StrEnum):
    """Why a generated pair of question and SQL, or a whole answer, is rejected."""

    NO_ANSWER = "no answer"
    NO_PAIR = "no JSON list of questions in the answer"
    MALFORMED = "question or SQL is missing or not text"
    QUERY_TYPE = "query type is not wanted"
    SIMILAR = "too similar to another question"
    SAME_QUERY = "same query as another question's"
    FAILS = "the SQL fails"
    EMPTY = "the SQL returns no rows"
    SURPLUS = "more of its query type than wanted"


class DatabaseReport(BaseModel):
    """The generated questions of one database.

    Attributes:
        wanted: number of questions asked for.
        questions: number of questions kept.
        batches: how many times the teacher was asked for the questions that were still missing.
        by_query_type, by_language, by_table, by_foreign_key: number of questions of each kind, or about each.
        rejected: number of rejected pairs, by reason.
        missing: number of questions that are still missing after the last batch, by query type.
    """

    wanted: int
    questions: int
    batches: int
    by_query_type: dict[str, int]
    by_language: dict[str, int]
    by_table: dict[str, int]
    by_foreign_key: dict[str, int]
    rejected: dict[str, int]
    missing: dict[str, int]


@dataclass(frozen=True, slots=True)
class Pair:
    """A generated question with its query, and the cell of the plan that the query falls into."""

    question: str
    sql: str
    cell: Cell


class DatabaseSynthesis:
    """Collects the generated questions about one database.

    Args:
        databases: runs the queries.
        db_id: name of the database.
        schemas: the schemas in prompts.
        known: the dataset's questions about it.
        settings: how many questions to generate, and of which query types.
        terms: what terms of the business mean.
    """

    def __init__(
        self,
        databases: Databases,
        db_id: str,
        schemas: TeacherSchemas,
        known: Sequence[Example],
        settings: DistillSettings,
        terms: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.db_id, self._databases, self._settings = db_id, databases, settings
        self._schemas, self._terms = schemas, terms_text(terms)
        schema = schemas.whole(db_id)
        self.dialect = schema.dialect
        self._schema = schema if settings.allow_empty else self._populated(schema)
        query_types = possible_query_types(self._schema, settings.synthesis.query_types or QUERY_TYPES)
        self._shares = even_shares(query_types, settings.synthesis.questions_per_database)
        self._coverage = Coverage()
        self.pairs: list[Pair] = []
        self._surplus: list[Pair] = []
        self._rejected: Counter[PairRejection] = Counter()
        self._batches = 0
        self._earlier = [example.question for example in known]
        self._words = [words_of(question) for question in self._earlier]
        self._queries = {canonical(example.sql) for example in known}

    def requests(self, batch: int) -> Iterator[tuple[Request, list[Cell]]]:
        """Requests for the questions that are still missing; each has cells of one query type and language."""
        settings = self._settings
        by_kind: dict[tuple[str, str], list[Cell]] = {}
        for cell in plan_cells(self._schema, self._missing(), settings.synthesis.languages, self._coverage):
            by_kind.setdefault((cell.query_type, cell.language), []).append(cell)
        size = settings.synthesis.questions_per_request
        for cells in by_kind.values():
            for start in range(0, len(cells), size):
                part = cells[start : start + size]
                shown = self._schemas.text(self.db_id, " ".join(name for cell in part for name in cell.tables))
                schema = "\n\n".join(filter(None, [shown, self._terms]))
                request = Request(
                    synthesis_messages(self.db_id, schema, part, self._earlier[-MAX_EARLIER_QUESTIONS:], self.dialect),
                    # A new sample number per batch, so that a repeated prompt is not answered from the ledger.
                    sample=batch,
                    temperature=settings.temperatures[batch % len(settings.temperatures)],
                    max_tokens=settings.max_tokens,
                    purpose="synthesis",
                )
                yield request, part

    def take(self, answered: Sequence[tuple[TeacherAnswer | None, list[Cell]]]) -> None:
        """Check the answers of a batch, and keep the pairs that pass."""
        self._batches += bool(answered)
        found = [(pair, cells[0].language) for answer, cells in answered for pair in self._read(answer)]
        queries = list(dict.fromkeys(sql for (_, sql), _ in found))
        results = dict(zip(queries, self._databases.execute(self.db_id, queries), strict=True)) if queries else {}
        for (question, sql), language in found:
            rejection = self._check(question, sql, results[sql])
            if rejection:
                self._rejected[rejection] += 1
            else:
                self._keep(Pair(question, sql, cell_of(self._schema, sql, query_type_of(sql, self.dialect), language)))

    def finish(self) -> None:
        """Fill missing questions with surplus ones of other query types, and log what is still missing."""
        while self._surplus and len(self.pairs) < self._settings.synthesis.questions_per_database:
            pair = min(self._surplus, key=lambda pair: self._coverage.query_types[pair.cell.query_type])
            self._surplus.remove(pair)
            self.pairs.append(pair)
            self._coverage.add(pair.cell)
        self._rejected[PairRejection.SURPLUS] += len(self._surplus)
        if not self._shares:
            console.info(
                f"distill: {self.db_id}: no questions are generated: its tables with rows allow none of the query "
                "types that are wanted"
            )
        missing = self._missing()
        if missing:
            counts = ", ".join(f"{count} of {name}" for name, count in missing.items())
            console.info(f"distill: {self.db_id}: still missing after {self._batches} batches: {counts}")

    def report(self) -> DatabaseReport:
        """Counts of the questions kept, rejected and missing."""
        coverage = self._coverage
        keys = [key_name(key, self.dialect) for key in self._schema.foreign_keys]
        return DatabaseReport(
            wanted=self._settings.synthesis.questions_per_database,
            questions=len(self.pairs),
            batches=self._batches,
            by_query_type={name: coverage.query_types[name] for name in self._shares},
            by_language={name: coverage.languages[name] for name in self._settings.synthesis.languages},
            by_table={table.name: coverage.tables[table.name] for table in self._schema.tables},
            by_foreign_key={name: coverage.foreign_keys[name] for name in keys},
            rejected={str(reason): self._rejected[reason] for reason in PairRejection if self._rejected[reason]},
            missing=self._missing(),
        )

    def _populated(self, schema: Schema) -> Schema:
        """The schema of the tables that have rows: a query on other tables returns nothing."""
        names = [table.name for table in schema.tables]
        has_rows = rows_in(self._databases, self.db_id, [quoted(name, self.dialect) for name in names])
        return schema.prune([name for name, has_some in zip(names, has_rows, strict=True) if has_some])

    def _missing(self) -> dict[str, int]:
        have = self._coverage.query_types
        return {name: share - have[name] for name, share in self._shares.items() if share > have[name]}

    def _read(self, answer: TeacherAnswer | None) -> Iterator[tuple[str, str]]:
        """The well-formed pairs of an answer; others are counted as rejected."""
        if answer is None:
            self._rejected[PairRejection.NO_ANSWER] += 1
            return
        pairs = list(parse_pairs(answer.text))
        self._rejected[PairRejection.NO_PAIR] += not pairs
        self._rejected[PairRejection.MALFORMED] += pairs.count(None)
        yield from filter(None, pairs)

    def _check(self, question: str, sql: str, result: Result) -> PairRejection | None:
        if result.failure != FailureMode.OK:
            return PairRejection.FAILS
        if is_empty(result) and not self._settings.allow_empty:
            return PairRejection.EMPTY
        if query_type_of(sql, self.dialect) not in self._shares:
            return PairRejection.QUERY_TYPE
        if canonical(sql) in self._queries:
            return PairRejection.SAME_QUERY
        return PairRejection.SIMILAR if self._is_known(words_of(question)) else None

    def _is_known(self, words: frozenset[str]) -> bool:
        limit = self._settings.synthesis.max_similarity
        return not words or any(words == other or question_similarity(words, other) > limit for other in self._words)

    def _keep(self, pair: Pair) -> None:
        self._earlier.append(pair.question)
        self._words.append(words_of(pair.question))
        self._queries.add(canonical(pair.sql))
        if self._coverage.query_types[pair.cell.query_type] < self._shares[pair.cell.query_type]:
            self.pairs.append(pair)
            self._coverage.add(pair.cell)
        else:
            self._surplus.append(pair)
