"""Which tables and columns of a gold query are shown when a schema does not fit, by several ways of pruning it.

Spider's dev questions, in English and in Chinese (CSpider), at a half and a quarter of the length of their schemas; the
same tables with 400 columns more; and all databases of Spider as one schema. No model is needed.
`CHATMETRICS_QUESTIONS` limits the number of questions of each set.
"""

import json
import math
import os
import random
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import pytest
from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.evaluate.statistics import wilson_interval
from chatmetrics.components.nl2sql.answers.qualified_names import UnresolvedNameError, qualify
from chatmetrics.components.nl2sql.join_graph import JoinGraph
from chatmetrics.components.nl2sql.linking.pruning import Pruner
from chatmetrics.components.nl2sql.linking.words import asked_words, words
from chatmetrics.components.nl2sql.prompts.token_counter import read_tokenizer
from chatmetrics.components.nl2sql.schema import Column, Schema, Table
from chatmetrics.components.nl2sql.sql.parsing import parse_new

SPIDER, TOKENIZER = (os.environ.get(f"CHATMETRICS_{name}_DIR", "") for name in ("SPIDER", "TOKENIZER"))
CSPIDER = os.environ.get("CHATMETRICS_CSPIDER_FILE", "")
QUESTIONS = int(os.environ.get("CHATMETRICS_QUESTIONS", "100000"))
SAMPLE_VALUES, WIDE, JOINED_BUDGET = 3, 400, 2048

pytestmark = pytest.mark.skipif(
    not (SPIDER and CSPIDER and TOKENIZER),
    reason="CHATMETRICS_SPIDER_DIR, CHATMETRICS_CSPIDER_FILE or CHATMETRICS_TOKENIZER_DIR is not set",
)

Names = frozenset[tuple[str, ...]]  # tables, and columns with their table, in lower case
Way = Callable[[Schema, str, Names, int], Schema | None]


@dataclass(frozen=True)
class Question:
    """A question, and the tables and columns of its gold query."""

    text: str
    db_id: str
    gold: Names


@cache
def entries() -> dict[str, dict[str, object]]:
    return {entry["db_id"]: entry for entry in json.loads((Path(SPIDER) / "tables.json").read_text())}


@cache
def schema_of(db_id: str) -> Schema:
    path = Path(SPIDER) / "database" / db_id / f"{db_id}.sqlite"
    return Schema.from_spider(entries()[db_id], path if path.exists() else None, SAMPLE_VALUES)


@cache
def joined() -> Schema:
    """All databases of Spider in one schema, each table with the name of its database."""
    tables, keys = [], []
    for db_id in sorted(entries()):
        schema = schema_of(db_id)
        tables += [replace(table, name=f"{db_id}_{table.name}") for table in schema.tables]
        keys += [
            replace(key, table=f"{db_id}_{key.table}", referenced_table=f"{db_id}_{key.referenced_table}")
            for key in schema.foreign_keys
        ]
    return Schema("spider", tuple(tables), tuple(keys))


@cache
def widened(db_id: str) -> Schema:
    """A database whose tables have 400 columns more, of two words each from the names of other databases."""
    generator = random.Random(db_id)
    others = (table.name for name in entries() if name != db_id for table in schema_of(name).tables)
    pool = sorted({word for name in others for word in words(name)})

    def wide(table: Table) -> Table:
        names = {f"{generator.choice(pool)}_{generator.choice(pool)}" for _ in range(WIDE)}
        added = tuple(Column(name, "REAL") for name in sorted(names - {column.name for column in table.columns}))
        columns = [*table.columns, *added]
        generator.shuffle(columns)
        return replace(table, columns=tuple(columns))

    schema = schema_of(db_id)
    return replace(schema, tables=tuple(map(wide, schema.tables)))


def gold_names(sql: str, schema: Schema) -> Names:
    tree = parse_new(qualify(sql, schema))
    known = {table.name.lower() for table in schema.tables}
    tables = {t.alias_or_name.lower(): t.name.lower() for t in tree.find_all(exp.Table) if t.name.lower() in known}
    columns = [
        (tables[column.table.lower()], column.name.lower())
        for column in tree.find_all(exp.Column)
        if column.table.lower() in tables and column.name != "*"
    ]
    return frozenset([*((name,) for name in tables.values()), *columns])


def questions(records: Sequence[Mapping[str, str]], field: str) -> list[Question]:
    found = []
    for record in records:
        try:
            gold = gold_names(record["query"], schema_of(record["db_id"]))
        except (UnresolvedNameError, SqlglotError):
            continue
        found.append(Question(record[field], record["db_id"], gold))
    return random.Random(0).sample(found, min(QUESTIONS, len(found)))


def names_of(schema: Schema) -> Names:
    tables = ((table.name.lower(),) for table in schema.tables)
    columns = ((table.name.lower(), column.name.lower()) for table in schema.tables for column in table.columns)
    return frozenset([*tables, *columns])


@cache
def tokenizer() -> object:
    return read_tokenizer(Path(TOKENIZER))


def count_tokens(text: str) -> int:
    return len(tokenizer().encode(text, add_special_tokens=False).ids)  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def length(schema: Schema) -> int:
    """Tokens of a whole schema."""
    return count_tokens(schema.render("ddl"))


# The ways. Each but ours ranks whole tables, without sample values if that is not said.


@lru_cache(maxsize=256)
def pruner(schema: Schema) -> Pruner:
    return Pruner(schema, "ddl")


def ours(schema: Schema, question: str, gold: Names, budget: int) -> Schema | None:
    return pruner(schema).prune(question, lambda text: count_tokens(text) - budget)


def filled(schema: Schema, ranked: Sequence[str], budget: int, values: bool = False) -> Schema | None:
    """As many of the ranked tables as fit."""
    whole = schema if values else without_values(schema)

    def fits(number: int) -> bool:
        return count_tokens(whole.prune(ranked[:number]).render("ddl")) <= budget

    highest = 1  # so that no long text is counted
    while highest < len(ranked) and fits(highest):
        highest *= 2
    number = bisect_left(range(1, min(highest, len(ranked)) + 1), True, key=lambda each: not fits(each))
    return whole.prune(ranked[:number]) if number else None


@lru_cache(maxsize=256)
def without_values(schema: Schema) -> Schema:
    bare = (
        replace(table, columns=tuple(replace(column, samples=()) for column in table.columns))
        for table in schema.tables
    )
    return replace(schema, tables=tuple(bare))


def file_order(schema: Schema, question: str, gold: Names, budget: int) -> Schema | None:
    return filled(schema, [table.name for table in schema.tables], budget)


def bm25(schema: Schema, question: str, gold: Names, budget: int) -> Schema | None:
    return filled(schema, by_score(bm25_scores(schema, question)), budget)


def closure(schema: Schema, question: str, gold: Names, budget: int) -> Schema | None:
    """The tables that BM25 finds, then by the number of foreign keys between them and the others."""
    return filled(schema, closure_order(schema, question), budget)


def closure_with_values(schema: Schema, question: str, gold: Names, budget: int) -> Schema | None:
    return filled(schema, closure_order(schema, question), budget, values=True)


def closure_order(schema: Schema, question: str) -> list[str]:
    scores = bm25_scores(schema, question)
    best = max(scores.values())
    distances = JoinGraph(schema).distances([name for name, score in scores.items() if score and score >= best / 2])
    return sorted(scores, key=lambda name: (distances.get(name, len(scores)), -scores[name]))


def pagerank(schema: Schema, question: str, gold: Names, budget: int) -> Schema | None:
    """Personalized PageRank over foreign keys, from the tables that BM25 finds."""
    scores = bm25_scores(schema, question)
    total = sum(scores.values()) or 1.0
    start = {name: score / total for name, score in scores.items()}
    neighbors = neighbors_of(schema)
    ranks = dict(start)
    for _ in range(20):
        following = {name: 0.15 * score for name, score in start.items()}
        for name, rank in ranks.items():
            for other in neighbors[name] or [name]:
                following[other] += 0.85 * rank / len(neighbors[name] or [name])
        ranks = following
    return filled(schema, by_score(ranks), budget)


def oracle(schema: Schema, question: str, gold: Names, budget: int) -> Schema | None:
    """The gold query's tables and columns, if they fit."""
    tables = []
    for table in without_values(schema).tables:
        name = table.name.lower()
        if (name,) in gold:
            columns = [column for column in table.columns if (name, column.name.lower()) in gold]
            tables.append(replace(table, columns=tuple(columns or table.columns[:1])))
    part = replace(schema.prune([]), tables=tuple(tables))
    return part if count_tokens(part.render("ddl")) <= budget else None


def by_score(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda name: -scores[name])


@lru_cache(maxsize=256)
def documents(schema: Schema) -> dict[str, Counter[str]]:
    """The words of each table: of its name, its columns, their descriptions and their sample values."""
    return {
        table.name: Counter(
            word
            for text in (
                table.name,
                *(text for column in table.columns for text in (column.name, column.description, *column.samples)),
            )
            for word in words(text)
        )
        for table in schema.tables
    }


@lru_cache(maxsize=256)
def neighbors_of(schema: Schema) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {table.name: [] for table in schema.tables}
    for key in schema.foreign_keys:
        found[key.table].append(key.referenced_table)
        found[key.referenced_table].append(key.table)
    return found


def bm25_scores(schema: Schema, question: str, k: float = 1.2, b: float = 0.75) -> dict[str, float]:
    """Okapi BM25 of the question's words (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework")."""
    texts = documents(schema)
    average = sum(text.total() for text in texts.values()) / len(texts)
    frequency = document_frequency(schema)
    scores: dict[str, float] = defaultdict(float)
    for name, text in texts.items():
        scores[name] = 0.0
        norm = k * (1 - b + b * text.total() / average)
        for word in asked_words(question):
            if times := text[word]:
                scores[name] += frequency[word] * times * (k + 1) / (times + norm)
    return scores


@lru_cache(maxsize=256)
def document_frequency(schema: Schema) -> dict[str, float]:
    texts = documents(schema).values()
    counts = Counter(word for text in texts for word in text)
    return {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in counts.items()}


WAYS: dict[str, Way] = {
    "ours": ours,
    "file order": file_order,
    "BM25": bm25,
    "foreign-key closure": closure,
    "the same, values kept": closure_with_values,
    "personalized PageRank": pagerank,
    "oracle": oracle,
}


def in_joined(question: Question) -> Names:
    return frozenset((f"{question.db_id}_{table}".lower(), *rest) for table, *rest in question.gold)


def sets() -> Iterator[tuple[str, list[tuple[Schema, str, Names, int]]]]:
    """The sets of questions: a schema, the question, the gold names, and the budget in tokens."""
    english = questions(json.loads((Path(SPIDER) / "dev.json").read_text()), "question")
    matched = [record for record in json.loads(Path(CSPIDER).read_text()) if record["split"] == "dev"]
    chinese = questions(matched, "question_zh")
    for part in (2, 4):
        for language, asked in (("English", english), ("Chinese", chinese)):
            name = f"Spider dev, {language}, 1/{part} of the length"
            yield (
                name,
                [(schema_of(q.db_id), q.text, q.gold, length(schema_of(q.db_id)) // part) for q in asked],
            )
    yield (
        f"{WIDE} columns more in each table, {JOINED_BUDGET:,} tokens",
        [(widened(q.db_id), q.text, q.gold, JOINED_BUDGET) for q in english],
    )
    for language, asked in (("English", english), ("Chinese", chinese)):
        name = f"all of Spider as one schema, {language}, {JOINED_BUDGET:,} tokens"
        yield name, [(joined(), q.text, in_joined(q), JOINED_BUDGET) for q in asked]


def percent(right: int, total: int) -> str:
    low, high = wilson_interval(right, total)
    return f"{100 * right / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def test_what_is_shown() -> None:
    schema = joined()
    columns = sum(len(table.columns) for table in schema.tables)
    print(f"\nthe joined schema: {len(schema.tables)} tables, {columns:,} columns, {length(schema):,} tokens")
    print("\n| questions | way | all gold tables | all gold columns too | ms |\n|---|---|---|---|---|")
    for name, asked in sets():
        for way, prune in WAYS.items():
            for schema, text, gold, budget in asked[:3]:
                prune(schema, text, gold, budget)  # what is built once for a schema
            tables, whole, seconds = 0, 0, 0.0
            for schema, text, gold, budget in asked:
                started = time.perf_counter()
                part = prune(schema, text, gold, budget)
                seconds += time.perf_counter() - started
                found = names_of(part) if part else frozenset()
                tables += {item for item in gold if len(item) == 1} <= found
                whole += gold <= found
            total = len(asked)
            shares = f"{percent(tables, total)} | {percent(whole, total)} | {1000 * seconds / total:.1f}"
            print(f"| {name} ({total}) | {way} | {shares} |", flush=True)
