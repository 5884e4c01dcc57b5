"""Questions about databases on servers and in DuckDB files: the schema, the gold queries and the prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from pydantic import ValidationError

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.answers.answer_form import Kept
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.preprocess.dataset_card import DatasetCard
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.dataset_databases import databases_of
from tests.nl2sql.hotels import DIALECTS

TITLES = {"postgresql": "PostgreSQL", "mariadb": "MySQL", "duckdb": "DuckDB"}
YEAR = {
    "postgresql": "SELECT to_char(opened, 'YYYY') FROM hotel WHERE name = 'Adler'",
    "mariadb": "SELECT DATE_FORMAT(opened, '%Y') FROM `hotel` WHERE name = \"Adler\"",
    "duckdb": "SELECT strftime(opened, '%Y') FROM hotel WHERE name = 'Adler'",
}


def source_of(folder: Path, *queries: str) -> Path:
    folder.mkdir()
    for split in ("train", "dev"):
        lines = ({"question": f"{split} {n}?", "sql": sql, "db_id": "hotels"} for n, sql in enumerate(queries))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def built(
    tokenizer: Path, source: Path, address: str | list[dict[str, Any]], **values: Any
) -> tuple[DatasetCard, list[Example]]:
    output = source.with_name("dataset")
    common = {"source": str(source), "format": "jsonl", "databases": address, "tokenizer": str(tokenizer)}
    card = preprocess(PreprocessSettings.model_validate({**common, "workers": 1, **values}), output)
    return card, [*read_examples(output / "train.jsonl"), *read_examples(output / "dev.jsonl")]


def address_of(addresses: dict[str, str], dialect: str) -> str:
    if dialect not in addresses:
        pytest.skip(f"{dialect} is not installed")
    return addresses[dialect]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_prompts_show_the_server_s_schema_and_name_the_dialect(
    dialect: str, workers: int, addresses: dict[str, str], tokenizer: Path, tmp_path: Path
) -> None:
    source = source_of(tmp_path / "source", "SELECT count(*) FROM hotel", YEAR[dialect], "SELECT nowhere FROM hotel")
    address = address_of(addresses, dialect)
    card, examples = built(tokenizer, source, address, workers=workers, sample_values=2)
    assert {example.instruction for example in examples} == {
        "Using the database 'hotels', translate the following natural language question into a "
        f"{TITLES[dialect]} query."
    }
    (shown,) = {example.system for example in examples}
    assert "CREATE TABLE hotel (" in shown and "e.g. Adler, Ritz" in shown and "per night, in euro" in shown
    assert [example.sql for example in examples[:2]] == ["SELECT count(*) FROM hotel", YEAR[dialect]]
    assert [example.query_type for example in examples[:2]] == ["aggregate", "single table"]
    assert card.databases == address
    failing, not_shown = (message for message in card.warnings() if "nowhere" in message)
    assert "fail: 2 of 6" in failing and "no such column: nowhere" in not_shown


@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_is_an_error_when_all_gold_queries_fail(
    dialect: str, addresses: dict[str, str], tokenizer: Path, tmp_path: Path
) -> None:
    source = source_of(tmp_path / "source", "SELECT julianday(opened) FROM hotel", "SELECT stars FROM hotel")
    with pytest.raises(
        InputError, match=r"^all 4 gold queries fail; the first, .*train\.jsonl:1: refused: .*julianday"
    ):
        built(tokenizer, source, address_of(addresses, dialect))
    assert not source.with_name("dataset").exists()


def test_a_missing_database_is_named(addresses: dict[str, str], tokenizer: Path, tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", "SELECT 1")
    address = addresses["duckdb"].replace("{db_id}", "x{db_id}")
    with pytest.raises(InputError, match=r"database 'hotels' is missing: .*xhotels\.duckdb"):
        built(tokenizer, source, address)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_answers_are_rewritten_in_the_dialect(
    dialect: str, addresses: dict[str, str], tokenizer: Path, tmp_path: Path
) -> None:
    """If they return the rows of the query; where there are no rows to compare, they are the query as given."""
    joined = "SELECT h.Name FROM hotel h INNER JOIN city AS c ON h.city_id = c.id WHERE c.name = 'Bonn'"
    empty = "SELECT h.name FROM hotel h WHERE h.price > 1000"
    source = source_of(tmp_path / "source", joined, empty, YEAR[dialect])
    card, examples = built(tokenizer, source, address_of(addresses, dialect), sql_form="from_first", plan="conditions")
    [rewritten, kept, year] = [example.output for example in examples if example.split == "train"]
    assert rewritten == (
        "Tables: hotel, city\nJoins: hotel.city_id = city.id\nConditions: city.name = 'Bonn'\n"
        "FROM hotel JOIN city ON hotel.city_id = city.id WHERE city.name = 'Bonn' SELECT hotel.name"
    )
    assert kept == empty and year.startswith("Tables: hotel\nConditions: hotel.name = 'Adler'\nFROM hotel WHERE")
    assert [example.sql for example in examples[:2]] == [joined, empty]
    assert [item.reason for item in card.not_rewritten] == [Kept.NO_ROWS] * 2
    with open_databases(address_of(addresses, dialect), 5) as databases:
        queries = [joined, sql_from_answer(rewritten), YEAR[dialect], sql_from_answer(year)]
        rows = [result.rows for result in databases.execute("hotels", queries)]
    assert rows == [[("Ritz",)]] * 2 + [[("2001",)]] * 2


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_query_with_a_name_that_its_prompt_does_not_show_is_listed(
    dialect: str, addresses: dict[str, str], tokenizer: Path, tmp_path: Path
) -> None:
    source = source_of(tmp_path / "source", "SELECT count(*) FROM hotel", "SELECT max(c.id) FROM city AS c")
    listed = [{"name": "hotels", "address": address_of(addresses, dialect), "tables": ["hotel"]}]
    card, _ = built(tokenizer, source, listed)
    assert [(item.id, item.message) for item in card.not_shown] == [
        (f"{split}:2", "no such table: city") for split in ("train", "dev")
    ]


def test_a_password_does_not_belong_into_a_recipe() -> None:
    with pytest.raises(ValidationError, match="it contains a password; leave it out, and set PGPASSWORD") as error:
        PreprocessSettings.model_validate({"databases": "postgresql+psycopg://reader:s3cret@host/{db_id}"})
    assert "s3cret" not in str(error.value.errors(include_input=False, include_context=False))


def test_one_dataset_has_questions_about_several_dialects(
    addresses: dict[str, str], tokenizer: Path, tmp_path: Path
) -> None:
    """And the examples of each database say its dialect."""
    listed = [
        {"name": f"in_{dialect}", "address": address.format(db_id="hotels"), "tables": ["hotel", "city"]}
        for dialect, address in addresses.items()
    ]
    source = tmp_path / "source"
    source.mkdir()
    lines = [
        {"question": "Which year?", "sql": YEAR[dialect], "db_id": f"in_{dialect}", "id": dialect}
        for dialect in addresses
    ]
    (source / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card, examples = built(tokenizer, source, listed, dev_fraction=0)
    assert (card.gold.checked, card.gold.failing) == (len(lines), [])
    for example in examples:
        assert f"into a {TITLES[example.id]} query" in example.instruction
        assert example.system.count("CREATE TABLE") == 2
    dataset = source.with_name("dataset")
    with (
        open_databases(databases_of(dataset), 5.0) as databases,
        databases.snapshot(example.db_id for example in examples),
    ):
        results = [databases.execute(example.db_id, [example.sql])[0] for example in examples]
    assert [result.rows for result in results] == [[("2001",)]] * len(lines)


@pytest.mark.parametrize("name", ["sales", "My Sales", 'a"b\\c', "x -cdefault_transaction_read_only=off"])
def test_a_schema_of_postgresql_is_chosen_by_the_list(
    addresses: dict[str, str], tokenizer: Path, tmp_path: Path, name: str
) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    address = address_of(addresses, "postgresql").format(db_id="hotels")
    engine = sqlalchemy.create_engine(address.replace("reader@", "admin@"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")
        connection.exec_driver_sql(f"CREATE TABLE {quoted}.hotel (revenue int)")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {quoted} TO reader")
        connection.exec_driver_sql(f"GRANT SELECT ON {quoted}.hotel TO reader")
    source = source_of(tmp_path / "source", "SELECT count(revenue) FROM hotel")
    try:
        _, examples = built(tokenizer, source, [{"name": "hotels", "address": address, "schema": name}])
        assert {example.system for example in examples} == {"CREATE TABLE hotel (\nrevenue integer\n);"}
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {quoted} CASCADE")
        engine.dispose()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "a", "address": "spider/database"}], "'spider/database' is no address"),
        ([{"name": "a", "address": "postgresql://u:s3cret@h/d"}], "it contains a password"),
        ([{"name": "a", "address": "duckdb:///a", "schema": "x"}], "`schema` is for PostgreSQL"),
        (
            [{"name": "a", "address": "duckdb:///a"}, {"name": "a", "address": "duckdb:///b"}],
            "two databases have one name",
        ),
        ([{"name": "a"}], "address\n.*Field required"),
    ],
)
def test_a_wrong_list_is_an_error_that_says_what_is_wrong(entries: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreprocessSettings.model_validate({"databases": entries})


def test_a_database_or_table_that_is_not_there_is_named(
    addresses: dict[str, str], tokenizer: Path, tmp_path: Path
) -> None:
    source = source_of(tmp_path / "source", "SELECT 1")
    address = addresses["duckdb"].format(db_id="hotels")
    with pytest.raises(InputError, match="database 'hotels' is not in the list of databases, which has other"):
        built(tokenizer, source, [{"name": "other", "address": address}])
    with pytest.raises(InputError, match="database 'hotels' has no table 'room'"):
        built(tokenizer, source, [{"name": "hotels", "address": address, "tables": ["hotel", "room"]}])
