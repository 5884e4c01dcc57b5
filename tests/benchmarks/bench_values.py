"""Which values of a database a question names: as asked, with a mistake, and in Chinese questions. No model is needed.

Spider's dev questions whose gold query compares a column with a text that the column contains, and the Chinese ones
(CSpider) of them. `CHATMETRICS_QUESTIONS` limits the number of questions of each set.
"""

import json
import os
import random
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.evaluate.statistics import wilson_interval
from chatmetrics.components.nl2sql.answers.qualified_names import UnresolvedNameError, qualify
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues
from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.linking.value_keys import key_of
from chatmetrics.components.nl2sql.linking.values import ValueIndex
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.parsing import parse_new

SPIDER = os.environ.get("CHATMETRICS_SPIDER_DIR", "")
CSPIDER = os.environ.get("CHATMETRICS_CSPIDER_FILE", "")
QUESTIONS = int(os.environ.get("CHATMETRICS_QUESTIONS", "100000"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHARACTERS = "天地人你我他一二三上中下大小多少来去年月日时分水火山石田土子女"
MILLION, PER_COLUMN = 1_000_000, 10_000

pytestmark = pytest.mark.skipif(
    not (SPIDER and CSPIDER), reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_CSPIDER_FILE is not set"
)

Literal = tuple[str, str, str]  # table and column in lower case, and the text


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: the question.
        db_id: its database.
        literals: the texts with which its gold query compares columns that contain them.
        wanted: those of them that are counted.
    """

    text: str
    db_id: str
    literals: frozenset[Literal]
    wanted: frozenset[Literal]


def path_of(db_id: str) -> Path:
    return Path(SPIDER) / "database" / db_id / f"{db_id}.sqlite"


@cache
def schema_of(db_id: str) -> Schema:
    entries = {entry["db_id"]: entry for entry in json.loads((Path(SPIDER) / "tables.json").read_text())}
    return Schema.from_spider(entries[db_id], path_of(db_id))


@cache
def texts(db_id: str, table: str, column: str) -> list[str]:
    """The texts that a column contains."""
    with closing(sqlite3.connect(f"file:{path_of(db_id)}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        rows = connection.execute(f'SELECT DISTINCT "{column}" FROM "{table}"')
        return [value for (value,) in rows if isinstance(value, str)]


@cache
def keys(db_id: str, table: str, column: str) -> frozenset[str]:
    return frozenset(key_of(value)[0] for value in texts(db_id, table, column))


@cache
def english_values(db_id: str) -> StoredValues:
    return StoredValues(schema_of(db_id), path_of(db_id))


@cache
def chinese_values(db_id: str) -> ValueIndex:
    """The values of a database, and in the same columns the Chinese texts of all queries on it."""
    added = defaultdict(list)
    for record in chinese_records():
        if record["db_id"] == db_id:
            for table, column, text in literals(record["query_luge"], db_id, is_contained=False):
                added[table, column].append(text)
    tables = [table for table in schema_of(db_id).tables if not table.kind]
    columns = [(table.name, column.name) for table in tables for column in table.columns]
    names = [name for column in columns for name in column]
    return ValueIndex((((a, b), [*texts(db_id, a, b), *added[a.lower(), b.lower()]]) for a, b in columns), names)


@cache
def chinese_records() -> list[Mapping[str, str]]:
    return [record for record in json.loads(Path(CSPIDER).read_text()) if path_of(record["db_id"]).exists()]


def literals(sql: str, db_id: str, is_contained: bool = True) -> Iterator[Literal]:
    """The texts that a query compares with a column, if that contains them."""
    tree = parse_new(qualify(sql, schema_of(db_id)))
    tables = {table.alias_or_name.lower(): table.name.lower() for table in tree.find_all(exp.Table)}
    for node in tree.find_all(exp.EQ, exp.NEQ, exp.Like, exp.In):
        column = node.this
        if not isinstance(column, exp.Column) or column.table.lower() not in tables:
            continue
        for text in [node.args.get("expression"), *node.expressions]:
            found = tables[column.table.lower()], column.name.lower()
            if not isinstance(text, exp.Literal) or not text.is_string:
                continue
            if not is_contained or key_of(text.this)[0] in keys(db_id, *found):
                yield (*found, text.this.strip("%"))


def questions(records: Sequence[Mapping[str, str]], text: str, query: str, is_contained: bool = True) -> list[Question]:
    found = []
    for record in records:
        if not path_of(record["db_id"]).exists():
            continue
        try:
            of_query = frozenset(literals(record[query], record["db_id"], is_contained))
        except (UnresolvedNameError, SqlglotError):
            continue
        if of_query:
            found.append(Question(record[text], record["db_id"], of_query, of_query))
    return random.Random(0).sample(found, min(QUESTIONS, len(found)))


def misspelled(question: Question) -> Question | None:
    """The question with one mistake in one of its texts; None if it has none of 5 letters or 4 Chinese characters."""
    generator = random.Random(question.text)
    for table, column, text in sorted(question.literals):
        end, letters, shortest = (r"(?!\w)", LETTERS, 5) if text.isascii() else ("", CHARACTERS, 4)
        place = re.search(rf"{end.replace('?', '?<')}{re.escape(text)}{end}", question.text, re.IGNORECASE)
        places = [number for number, letter in enumerate(text) if letter.isalpha()]
        if place and len(places) >= shortest:
            number = generator.choice(places)
            before, letter, after = text[:number], text[number], text[number + 1 :]
            other = generator.choice(letters.replace(letter.lower(), ""))
            wrong = generator.choice([before + after, f"{before}{other}{letter}{after}", f"{before}{other}{after}"])
            asked = question.text[: place.start()] + wrong + question.text[place.end() :]
            return replace(question, text=asked, wanted=frozenset({(table, column, text)}))
    return None


def sets() -> Iterator[tuple[str, list[Question], Callable[[str], StoredValues | ValueIndex]]]:
    """The sets of questions, and the values of a database."""
    english = questions(json.loads((Path(SPIDER) / "dev.json").read_text()), "question", "query")
    yield "Spider dev, English, as asked", english, english_values
    yield "Spider dev, English, one mistake", [wrong for each in english if (wrong := misspelled(each))], english_values
    chinese = questions(chinese_records(), "question_zh", "query_luge", is_contained=False)
    yield "CSpider, Chinese, as asked", chinese, chinese_values
    yield "CSpider, Chinese, one mistake", [wrong for each in chinese if (wrong := misspelled(each))], chinese_values


def column_of(value: FoundValue) -> tuple[str, str]:
    return value.table.lower(), value.column.lower()


def percent(right: int, total: int) -> str:
    low, high = wilson_interval(right, total)
    return f"{100 * right / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def test_values_are_found() -> None:
    print("\n| questions | texts | column found | other columns with the text | wrong columns | ms |")
    print("|---|---|---|---|---|---|")
    for name, asked, values_of in sets():
        for question in asked:
            values_of(question.db_id).find("")
        right = total = same = wrong = 0
        seconds = 0.0
        for question in asked:
            started = time.perf_counter()
            found = values_of(question.db_id).find(question.text)
            seconds += time.perf_counter() - started
            columns = {column_of(value) for value in found}
            gold = {(table, column) for table, column, _ in question.literals}
            of_gold = {key_of(text)[0] for _, _, text in question.literals}
            right += sum((table, column) in columns for table, column, _ in question.wanted)
            total += len(question.wanted)
            others = [value for value in found if column_of(value) not in gold]
            same += sum(key_of(value.value)[0] in of_gold for value in others)
            wrong += sum(key_of(value.value)[0] not in of_gold for value in others)
        number = len(asked)
        rates = f"{same / number:.2f} | {wrong / number:.3f} | {1000 * seconds / number:.2f}"
        print(f"| {name} ({number}) | {total} | {percent(right, total)} | {rates} |", flush=True)


def test_a_million_values(tmp_path: Path) -> None:
    generator = random.Random(0)
    words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(4, 10))) for _ in range(200_000)]
    path = tmp_path / "large.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        for number in range(MILLION // PER_COLUMN):
            connection.execute(f"CREATE TABLE t{number} (name TEXT)")
            rows = ((f"{generator.choice(words)} {generator.choice(words)}",) for _ in range(PER_COLUMN))
            connection.executemany(f"INSERT INTO t{number} VALUES (?)", rows)
        asked = [name for (name,) in connection.execute("SELECT name FROM t7 LIMIT 200")]
    values = StoredValues(Schema.from_sqlite(path), path)
    started = time.perf_counter()
    values.find("")
    print(f"\n{MILLION:,} values: read and indexed in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    found = sum(bool(values.find(f"How many orders has {name[:3]}{name[4:]} had since May?")) for name in asked)
    print(
        f"{found} of {len(asked)} misspelled ones found; {1000 * (time.perf_counter() - started) / len(asked):.2f} ms"
    )
