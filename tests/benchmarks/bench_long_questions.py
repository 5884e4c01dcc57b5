"""What survives of a question inside pages of other text: the gold tables and columns, and the literals.

Spider's dev questions, in English and in Chinese (CSpider), inside 1,000, 4,000 and 16,000 tokens of generated business
text that mentions tables and columns of the question's database and of others. No model is needed.
`CHATMETRICS_QUESTIONS` limits the number of questions of each set.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.answers.qualified_names import UnresolvedNameError
from chatmetrics.components.nl2sql.linking.words import words
from chatmetrics.components.nl2sql.prompts.prompt_fitter import PromptFitter
from chatmetrics.components.nl2sql.sql.parsing import parse_new
from tests.benchmarks import bench_linking as linking
from tests.benchmarks.bench_linking import Names, count_tokens, gold_names, names_of, percent, schema_of
from tests.benchmarks.business_text import hide

LENGTHS = (0, 1000, 4000, 16_000)
ROOM = 1024  # tokens of schema and question together
MENTIONED = 30  # tables of other databases, in a text

pytestmark = linking.pytestmark


@dataclass(frozen=True)
class Question:
    """A question, the names in its gold query, and the literals of the query that the question contains."""

    text: str
    language: str
    db_id: str
    gold: Names
    literals: tuple[tuple[str, ...], ...]


def questions(records: Sequence[Mapping[str, str]], field: str, language: str) -> list[Question]:
    found = []
    for record in records:
        try:
            gold = gold_names(record["query"], schema_of(record["db_id"]))
            literals = {tuple(words(each.name)) for each in parse_new(record["query"]).find_all(exp.Literal)}
        except (UnresolvedNameError, SqlglotError):
            continue
        named = tuple(sorted(each for each in literals if contains(words(record[field]), each)))
        found.append(Question(record[field], language, record["db_id"], gold, named))
    return random.Random(0).sample(found, min(linking.QUESTIONS, len(found)))


def contains(text: Sequence[str], part: Sequence[str]) -> bool:
    return bool(part) and any(list(part) == list(text[n : n + len(part)]) for n in range(len(text)))


@lru_cache(maxsize=256)
def fitter(db_id: str) -> PromptFitter:
    return PromptFitter(schema_of(db_id), "ddl")


count_once = lru_cache(maxsize=256)(count_tokens)


def excess(system: str, asked: str) -> int:
    return count_once(system) + count_tokens(asked) - ROOM


@lru_cache(maxsize=256)
def mentioned(db_id: str) -> list[tuple[str, str]]:
    """Tables with a column each: all of the database, and some of others, half as many at most."""
    generator = random.Random(db_id)
    others = generator.sample(sorted(set(linking.entries()) - {db_id}), MENTIONED)
    own = list(schema_of(db_id).tables) * MENTIONED
    tables = [*own[:MENTIONED], *(schema_of(other).tables[0] for other in others)]
    return [(table.name, generator.choice(table.columns).name) for table in tables if table.columns]


def sets() -> Iterator[tuple[str, list[Question]]]:
    records = json.loads((Path(linking.SPIDER) / "dev.json").read_text())
    yield "English", questions(records, "question", "en")
    matched = [record for record in json.loads(Path(linking.CSPIDER).read_text()) if record["split"] == "dev"]
    yield "Chinese", questions(matched, "question_zh", "zh")


def measured(asked: Sequence[Question], length: int) -> str:
    """One row: the shares of questions that keep something, and milliseconds."""
    tables = columns = literals = complete = 0
    seconds = 0.0
    for number, question in enumerate(asked):
        text = question.text
        if length:
            names = mentioned(question.db_id)
            text = hide(text, question.language, names, length, count_once, f"{question.db_id} {number}")
        started = time.perf_counter()
        fitted = fitter(question.db_id).fit(text, "", excess)
        seconds += time.perf_counter() - started
        found = names_of(fitted.schema) if fitted else frozenset()
        kept = fitted.question if fitted else ""
        tables += {item for item in question.gold if len(item) == 1} <= found
        columns += question.gold <= found
        kept_words = words(kept)
        literals += all(contains(kept_words, each) for each in question.literals)
        complete += question.text.strip().rstrip(".") in kept
    total = len(asked)
    shares = (percent(number, total) for number in (tables, columns, literals, complete))
    return f"{' | '.join(shares)} | {1000 * seconds / total:.1f}"


def test_what_survives() -> None:
    columns = "all gold tables", "all gold columns too", "all literals", "the question itself", "ms"
    print(f"\n| questions | inside tokens of text | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|")
    for name, asked in sets():
        measured(asked[:20], LENGTHS[-1])  # what is built once for a schema
        for length in LENGTHS:
            print(f"| Spider dev, {name} ({len(asked)}) | {length:,} | {measured(asked, length)} |", flush=True)
