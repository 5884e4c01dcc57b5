"""The demo's hotel business in other dialects: the same data and questions, with translated gold queries."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.preprocess.dataset_card import UNTRANSLATED, DatasetCard
from chatmetrics.components.preprocess.hotel import generate
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from tests.nl2sql.hotels import DIALECTS, INSTALLED, copied

TITLES = {"postgresql": "PostgreSQL", "mariadb": "MySQL", "duckdb": "DuckDB"}


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's database."""
    folder = tmp_path_factory.mktemp("demo")
    generate(folder, 42)
    return next(folder.rglob("*.sqlite"))


@pytest.fixture(scope="module", params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    if not INSTALLED[request.param]:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def address(sqlite: Path, dialect: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with copied(sqlite, dialect, tmp_path_factory.mktemp(dialect)) as found:
        yield found


def all_examples(dataset: Path) -> list[Example]:
    return [example for name in ("train", "dev") for example in read_examples(dataset / f"{name}.jsonl")]


def test_the_hotel_questions_are_asked_in_each_dialect(
    address: str, dialect: str, tokenizer: Path, tmp_path: Path
) -> None:
    common = {"format": "hotel", "tokenizer": str(tokenizer), "workers": 1, "limit": 60, "template": "deepseek3"}
    card = preprocess(PreprocessSettings(**common, translate_to=address), tmp_path / "out")
    assert (card.databases, card.translated_from) == (address, "databases")
    given = {each.id: each for each in _given(common, tmp_path / "given")}
    examples = all_examples(tmp_path / "out")
    assert len(examples) >= 0.9 * len(given)
    assert len(examples) + len(card.dropped) == len(given) and {each.reason for each in card.dropped} <= {UNTRANSLATED}
    assert any("家" in each.question for each in examples) and any("hotels" in each.question for each in examples)
    assert all(f"into a {TITLES[dialect]} query" in each.instruction for each in examples)
    assert any(each.sql != given[each.id].sql for each in examples)
    # Each query returns the same rows where it was given and where it was translated to.
    with open_databases(str(tmp_path / "given/databases"), 10) as here, open_databases(address, 10) as there:
        for each in examples[::10]:
            [ours] = there.execute(each.db_id, [each.sql])
            [theirs] = here.execute(each.db_id, [given[each.id].sql])
            assert len(ours.rows) == len(theirs.rows), each.sql


def test_the_translated_queries_are_rewritten_too(address: str, dialect: str, tokenizer: Path, tmp_path: Path) -> None:
    common = {"format": "hotel", "tokenizer": str(tokenizer), "workers": 1, "limit": 60, "template": "deepseek3"}
    forms = {"sql_form": "from_first", "plan": "conditions"}
    card = preprocess(PreprocessSettings.model_validate({**common, **forms, "translate_to": address}), tmp_path / "out")
    examples = all_examples(tmp_path / "out")
    kept = {each.id for each in card.not_rewritten}
    assert len(kept) <= 0.05 * len(examples) and not card.not_shown
    with open_databases(address, 10) as databases:
        for each in (example for example in examples[::10] if example.id not in kept):
            assert each.output.startswith("Tables: ") and each.output != each.sql
            given, turned = databases.execute(each.db_id, [each.sql, sql_from_answer(each.output)])
            assert sorted(map(str, given.rows)) == sorted(map(str, turned.rows)), each.output


def _given(common: dict[str, object], dataset: Path) -> list[Example]:
    preprocess(PreprocessSettings.model_validate(common), dataset)
    return all_examples(dataset)


def test_what_is_not_verified_is_left_out(
    shop: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = shop / "databases/shop/shop.sqlite"
    with closing(sqlite3.connect(here)) as connection, connection:
        connection.execute("INSERT INTO item VALUES (3, 'Tea', 9)")
    with copied(here, "duckdb", tmp_path) as address:
        with closing(sqlite3.connect(here)) as connection, connection:
            connection.execute("DELETE FROM item WHERE id = 3")  # now the two have other rows
        common = {"source": str(shop), "format": "jsonl", "tokenizer": str(tokenizer), "workers": 1}
        card = preprocess(PreprocessSettings(**common, translate_to=address), tmp_path / "out")
        left_out = {each.id: each.message for each in card.dropped}
        assert "returns other rows than the query (1 and 1 rows)" in left_out["train:1"]
        assert "returns other rows than the query (1 and 2 rows)" in left_out["train:3"]
        assert "the query itself fails: " in left_out["train:5"] or "in DuckDB: " in left_out["train:5"]
        assert {each.id for each in all_examples(tmp_path / "out")} == {"train:4", "dev:1"}
        printed = capsys.readouterr().err
        assert "questions left out, because their query has no verified translation: 4; for example train:1" in printed
        assert "queries translated from those of" in (tmp_path / "out/dataset_card.md").read_text()
        (shop / "train.jsonl").write_text('{"question": "q", "sql": "SELECT count(*) FROM item", "db_id": "shop"}')
        (shop / "dev.jsonl").unlink()
        with pytest.raises(
            InputError, match=r"translate_to: no query could be translated; the first, .*train\.jsonl:1"
        ):
            preprocess(PreprocessSettings(**common, translate_to=address), tmp_path / "none")
    assert DatasetCard.read(tmp_path / "out").dropped_by_split["train"] == {UNTRANSLATED: 4}


def test_a_message_with_a_private_value_is_not_shown(
    shop: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT CAST(name AS INTEGER) FROM item"
    (shop / "train.jsonl").write_text(f'{{"question": "q", "sql": "{query}", "db_id": "shop"}}\n')
    (shop / "knowledge.yaml").write_text("databases: {shop: {tables: {item: {columns: {name: {private: true}}}}}}")
    common = {"source": str(shop), "format": "jsonl", "tokenizer": str(tokenizer), "workers": 1}
    with copied(shop / "databases/shop/shop.sqlite", "duckdb", tmp_path) as address:
        for knowledge, is_shown in (("", True), (str(shop / "knowledge.yaml"), False)):
            given = PreprocessSettings.model_validate({**common, "translate_to": address, "knowledge": knowledge})
            card = preprocess(given, tmp_path / "out")
            [message] = [each.message for each in card.dropped]
            printed = capsys.readouterr().err + (tmp_path / "out/dataset_card.json").read_text(encoding="utf-8")
            assert ("'tea'" in message and "'tea'" in printed) == is_shown
            assert is_shown or ("'tea'" not in printed and "not shown, because the database has private" in message)


def test_files_are_no_address() -> None:
    with pytest.raises(ValidationError, match="translate_to is 'databases', which is no address"):
        PreprocessSettings(translate_to="databases")
