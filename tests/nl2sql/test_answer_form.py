"""The answers that a model is trained on mean what the queries mean, or are the queries."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.nl2sql.answers.answer_form import Answer, AnswerForm, Execute, Kept, answer_of
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.answers.qualified_names import qualify
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode, Result
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.verdict import StrictVerdict

JOIN = 'SELECT T1.name FROM city T1 JOIN country T2 ON country_id = T2.id WHERE T2.name = "Japan"'
CANONICAL = "SELECT city.name FROM city JOIN country ON city.country_id = country.id WHERE country.name = 'Japan'"
TURNED = "FROM city JOIN country ON city.country_id = country.id WHERE country.name = 'Japan' SELECT city.name"
TABLES = "Tables: city, country\nJoins: city.country_id = country.id\n"
CONDITIONS = f"{TABLES}Conditions: country.name = 'Japan'\n"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (AnswerForm(), JOIN),
        (AnswerForm("canonical"), CANONICAL),
        (AnswerForm("from_first"), TURNED),
        (AnswerForm("as_given", "tables"), TABLES + JOIN),
        (AnswerForm("canonical", "tables"), TABLES + CANONICAL),
        (AnswerForm("from_first", "conditions"), CONDITIONS + TURNED),
    ],
)
def test_an_answer_has_the_form_and_gives_the_query(
    form: AnswerForm, text: str, schema: Schema, execute: Execute
) -> None:
    assert answer_of(JOIN, form, schema, execute) == Answer(text)
    assert answer_of(JOIN, form, schema, None) == Answer(text)
    assert sql_from_answer(text) == (JOIN if form.sql == "as_given" else CANONICAL)


def test_a_semicolon_is_no_part_of_an_answer_with_a_plan(schema: Schema, execute: Execute) -> None:
    given = answer_of(f"{JOIN} ; ", AnswerForm("as_given", "tables"), schema, execute)
    assert given == Answer(TABLES + JOIN)


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("SELECT name FROM", Kept.UNPARSED),
        ("SELECT buyer FROM city", Kept.UNRESOLVED),
        ("SELECT name FROM city JOIN country ON country_id = country.id", Kept.UNRESOLVED),
        ("SELECT id FROM city ORDER BY id LIMIT 1 UNION SELECT id FROM city_1", Kept.FAILS),
        ("SELECT random() AS x FROM city", Kept.OTHER_ROWS),
    ],
)
@pytest.mark.parametrize("form", [AnswerForm("canonical"), AnswerForm("from_first", "tables")])
def test_a_query_that_cannot_be_rewritten_is_kept(
    sql: str, kept: Kept, form: AnswerForm, schema: Schema, execute: Execute
) -> None:
    assert answer_of(sql, form, schema, execute) == Answer(sql, kept)


def test_without_rows_the_compiled_queries_are_compared(schema: Schema, execute: Execute) -> None:
    form = AnswerForm("canonical")
    assert answer_of("SELECT E.name FROM empty E", form, schema, execute) == Answer("SELECT empty.name FROM empty")
    assert answer_of("SELECT max(id) FROM empty", form, schema, execute) == Answer("SELECT MAX(empty.id) FROM empty")
    # Rewritten to substring, another name of the same function, which is not known here.
    assert answer_of("SELECT substr(name, 2) FROM empty", form, schema, execute).kept == Kept.OTHER_PROGRAM
    assert answer_of("SELECT count(substr(name, 2)) FROM empty", form, schema, execute).kept == Kept.OTHER_PROGRAM
    assert answer_of("SELECT substr(name, 2) FROM city", form, schema, execute).kept is None
    assert answer_of("SELECT substr(name, 2) FROM city", form, schema, None).kept == Kept.OTHER_PROGRAM
    assert answer_of("SELECT id FROM city WHERE no_such_function(name)", form, schema, None).kept == Kept.FAILS


def test_a_database_that_returns_other_rows_keeps_the_query(schema: Schema) -> None:
    def broken(queries: Sequence[str]) -> list[Result]:
        return [Result(("name",), [(sql,)]) for sql in queries]

    assert answer_of(JOIN, AnswerForm("canonical"), schema, broken).kept == Kept.OTHER_ROWS


class Spider:
    """The gold queries of Spider, each once."""

    def __init__(self, folder: Path) -> None:
        self.databases = folder / "database"
        self._tables = {entry["db_id"]: entry for entry in json.loads((folder / "tables.json").read_bytes())}
        files = [folder / f"{name}.json" for name in ("train_spider", "train_others", "dev")]
        items = [item for file in files for item in json.loads(file.read_bytes())]
        self.queries: dict[str, list[str]] = {}
        for db_id, sql in dict.fromkeys((item["db_id"], item["query"].strip()) for item in items):
            self.queries.setdefault(db_id, []).append(sql)

    def path(self, db_id: str) -> Path | None:
        path = self.databases / db_id / f"{db_id}.sqlite"
        return path if path.is_file() else None

    @cache  # noqa: B019
    def schema(self, db_id: str) -> Schema:
        return Schema.from_spider(self._tables[db_id], self.path(db_id))


@pytest.fixture(scope="module")
def spider() -> Spider:
    if "CHATMETRICS_SPIDER_DIR" not in os.environ:
        pytest.skip("CHATMETRICS_SPIDER_DIR is not set")
    return Spider(Path(os.environ["CHATMETRICS_SPIDER_DIR"]))


@pytest.mark.exhaustive
def test_every_gold_query_of_spider_keeps_its_meaning(spider: Spider) -> None:
    kept = Counter[Kept | None]()
    with Executor() as executor:
        for db_id, queries in spider.queries.items():
            schema, path = spider.schema(db_id), spider.path(db_id)
            execute = partial(executor.execute_all, path) if path else None
            for sql in queries:
                # This form has the canonical one inside.
                answer = answer_of(sql, AnswerForm("from_first", "conditions"), schema, execute)
                kept[answer.kept] += 1
                if not answer.kept:
                    read_back = sql_from_answer(answer.text)
                    assert qualify(sql, schema) == read_back
                    assert qualify(read_back, schema) == read_back
    # One query names a table that does not exist, one has ORDER BY before INTERSECT.
    assert kept == {None: 5293, Kept.UNRESOLVED: 1, Kept.FAILS: 1}


def test_what_a_model_is_scored_by_returns_the_gold_rows(spider: Spider) -> None:
    form = AnswerForm("from_first", "conditions")
    with Executor() as executor:
        for db_id, queries in spider.queries.items():
            path = spider.path(db_id)
            for sql in queries[:5] if path else ():
                execute = partial(executor.execute_all, path)
                answer = sql_from_answer(answer_of(sql, form, spider.schema(db_id), execute).text)
                gold, result = execute([sql, answer])
                if gold.failure == FailureMode.OK:
                    assert StrictVerdict("", sql, gold, execute).is_same(answer, result), answer


def test_the_queries_of_cspider_keep_their_meaning(spider: Spider) -> None:
    if "CHATMETRICS_CSPIDER_FILE" not in os.environ:
        pytest.skip("CHATMETRICS_CSPIDER_FILE is not set")
    items: list[dict[str, Any]] = json.loads(Path(os.environ["CHATMETRICS_CSPIDER_FILE"]).read_bytes())
    kept = Counter[Kept | None]()
    with Executor() as executor:
        for db_id, sql in sorted({(item["db_id"], item["query"]) for item in items}):
            path = spider.path(db_id)
            execute = partial(executor.execute_all, path) if path else None
            kept[answer_of(sql, AnswerForm("from_first"), spider.schema(db_id), execute).kept] += 1
    assert kept[None] > 500
    assert set(kept) <= {None, Kept.FAILS}


def test_published_predictions_are_rewritten_or_kept(spider: Spider) -> None:
    folder = Path(os.environ.get("CHATMETRICS_PREDICTIONS_DIR", "/nowhere"))
    files = sorted(folder.glob("*.json"))
    if not files:
        pytest.skip("CHATMETRICS_PREDICTIONS_DIR is not set")
    items = [item for path in files for item in json.loads(path.read_bytes())]
    predictions = sorted({(item["db_id"], item["predicted"]) for item in items})[::6]
    kept = Counter[Kept | None]()
    with Executor() as executor:
        for db_id, sql in predictions:
            schema, path = spider.schema(db_id), spider.path(db_id)
            execute = partial(executor.execute_all, path) if path else None
            answer = answer_of(sql, AnswerForm("from_first", "tables"), schema, execute)
            kept[answer.kept] += 1
            read_back = sql_from_answer(answer.text)
            assert answer.kept or qualify(read_back, schema) == read_back
    # Models make mistakes with names; other reasons are rare.
    assert kept[None] > 0.9 * len(predictions) > 500
    assert set(kept) <= {None, Kept.UNRESOLVED, Kept.FAILS, Kept.UNPARSED}
