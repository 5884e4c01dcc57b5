"""Several sources with weights."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.readers import Record
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.preprocess.sources import read_source
from chatmetrics.components.storage.dataset_databases import located_databases
from chatmetrics.components.storage.mirror import push_folder


def write_database(path: Path, table: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute(f"INSERT INTO {table} VALUES (1, 'a')")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A source in Spider's layout, with 40 training questions, no dev questions, and a database of its own."""
    folder = tmp_path / "zoo"
    write_database(folder / "database" / "zoo" / "zoo.sqlite", "animal")
    items = [
        {"question": f"Number {n}?", "query": f"SELECT name FROM animal WHERE id = {n}", "db_id": "zoo"}
        for n in range(40)
    ]
    (folder / "train.json").write_text(json.dumps(items), encoding="utf-8")
    return folder


def settings(*sources: dict[str, Any], **more: Any) -> PreprocessSettings:
    return PreprocessSettings.model_validate({"sources": list(sources), "workers": 1, **more})


def questions(records: list[Record], split: str) -> dict[str, int]:
    return {record.question: record.weight for record in records if record.split == split}


def test_several_sources_are_one_dataset(shop: Path, zoo: Path, tokenizer: Path, tmp_path: Path) -> None:
    given = settings(
        {"source": str(zoo), "format": "spider"},
        {"source": str(shop), "format": "jsonl", "weight": 3},
        tokenizer=str(tokenizer),
    )
    card = preprocess(given, tmp_path / "dataset")
    train = read_examples(tmp_path / "dataset" / "train.jsonl")
    dev = read_examples(tmp_path / "dataset" / "dev.jsonl")
    # The zoo has no dev questions, so that a tenth is held out; the shop has some.
    assert Counter(example.db_id for example in train) == {"zoo": 36, "shop": 5}
    assert Counter(example.db_id for example in dev) == {"zoo": 4, "shop": 1}
    assert {example.weight for example in train if example.db_id == "zoo"} == {1}
    assert {example.weight for example in train if example.db_id == "shop"} == {3}
    assert {example.weight for example in dev} == {1}
    assert train[0].id.startswith("sources.0/train:") and train[-1].id.startswith("sources.1/train:")
    assert card.source == f"{zoo} (weight 1), {shop} (weight 3)"
    assert card.gold.checked == 46 and len(card.gold.failing) == 1
    # The databases of all sources are found again.
    with located_databases(tmp_path / "dataset") as where:
        assert {path.stem for path in Path(where).glob("*.sqlite")} == {"zoo", "shop"}
    with located_databases(tmp_path / "dataset", str(zoo / "database")) as where:
        assert {path.stem for path in Path(where).glob("*.sqlite")} == {"zoo", "shop"}


@pytest.mark.parametrize(
    ("weight", "counts"), [(1, {1: 40}), (2, {2: 40}), (2.5, {2: 20, 3: 20}), (0.25, {1: 10}), (1.1, {1: 36, 2: 4})]
)
def test_a_weight_with_a_fraction_is_that_of_a_random_part(zoo: Path, weight: float, counts: dict[int, int]) -> None:
    given = settings({"source": str(zoo), "weight": weight}, dev_fraction=0)
    records = read_source(given).records
    assert Counter(record.weight for record in records) == counts
    assert records == read_source(given).records
    assert records != read_source(given.model_copy(update={"seed": 1})).records or weight in (1, 2)


def test_dev_questions_and_the_limit_do_not_depend_on_weights(zoo: Path) -> None:
    held_out = [
        questions(read_source(settings({"source": str(zoo), "weight": weight}, limit=20)).records, "dev")
        for weight in (0.5, 1, 4)
    ]
    assert held_out[0] == held_out[1] == held_out[2] and set(held_out[0].values()) == {1}
    drawn = read_source(settings({"source": str(zoo), "weight": 0.5}, limit=20)).records
    assert len(questions(drawn, "train")) == 10


def test_each_source_has_fields_of_its_own(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("nl;SQL;db_id\nHow many?;SELECT 1;shop\n", encoding="utf-8")
    mine = {"source": str(tmp_path / "mine.csv"), "format": "csv", "fields": {"question": "nl"}}
    given = settings({"source": str(shop), "format": "jsonl"}, mine, databases=str(shop), dev_fraction=0)
    assert "How many?" in questions(read_source(given).records, "train")
    with pytest.raises(InputError, match=r"--set preprocess.sources.1.fields.question=NAME if it has another name"):
        read_source(settings({"source": str(shop), "format": "jsonl"}, mine | {"fields": {}}, databases=str(shop)))


def test_errors_name_the_source(shop: Path, zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"typo: no such file or folder; check preprocess.sources.1.source"):
        read_source(settings({"source": str(zoo)}, {"source": str(tmp_path / "typo")}))
    write_database(shop / "databases" / "zoo" / "zoo.sqlite", "cage")
    with (shop / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "Cages?", "sql": "SELECT 1", "db_id": "zoo"}) + "\n")
    with pytest.raises(InputError, match=r"preprocess.sources.1: .* are different databases with the name 'zoo'"):
        read_source(settings({"source": str(zoo)}, {"source": str(shop), "format": "jsonl"}))


def test_a_dev_question_of_one_source_is_not_trained_on_from_another(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"question": "days on which TEA was sold", "sql": "SELECT day FROM sale", "db_id": "shop"}
    (tmp_path / "more.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record | {"question": "b"}), "utf-8")
    more = {"source": str(tmp_path / "more.jsonl"), "format": "jsonl"}
    shops = {"source": str(shop), "format": "jsonl"}
    for sources in ((shops, more), (more, shops)):
        records = read_source(settings(*sources, databases=str(shop), dev_fraction=0)).records
        assert record["question"] not in questions(records, "train") and "b" in questions(records, "train")
        assert "1 training questions are left out, because they are dev questions of another" in capsys.readouterr().err


def test_two_descriptions_of_one_database_are_an_error(tmp_path: Path) -> None:
    for name, table in (("one", "animal"), ("two", "cage")):
        (tmp_path / name).mkdir()
        item = {"question": name, "query": f"SELECT name FROM {table}", "db_id": "zoo"}
        (tmp_path / name / "train.json").write_text(json.dumps([item]), encoding="utf-8")
        entry = {"db_id": "zoo", "table_names_original": [table]}
        (tmp_path / name / "tables.json").write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(InputError, match=r"preprocess.sources.1: its tables.json describes 'zoo' in another way"):
        read_source(settings(*({"source": str(tmp_path / name)} for name in ("one", "two"))))
    assert len(read_source(settings(*[{"source": str(tmp_path / "one")}] * 2, dev_fraction=0)).records) == 2


def test_a_weight_that_leaves_nothing_is_an_error(shop: Path) -> None:
    with pytest.raises(InputError, match=r"preprocess.sources.0.weight: 0.05 leaves none of 5 questions"):
        read_source(settings({"source": str(shop), "format": "jsonl", "weight": 0.05}))


def test_sources_with_the_same_questions_lose_different_ones(zoo: Path) -> None:
    half = {"source": str(zoo), "weight": 0.5}
    records = read_source(settings(half, half, dev_fraction=0)).records
    first, second = (
        {record.question for record in records if record.id.startswith(f"sources.{number}/")} for number in range(2)
    )
    assert len(first) == len(second) == 20 and first != second


def test_a_held_out_set_finds_the_databases_of_every_source(
    shop: Path, zoo: Path, tokenizer: Path, tmp_path: Path
) -> None:
    write_database(zoo / "database" / "extra" / "extra.sqlite", "plant")
    (tmp_path / "sets").mkdir()
    item = {"question": "Plants?", "sql": "SELECT count(*) FROM plant", "db_id": "extra"}
    (tmp_path / "sets" / "mine.jsonl").write_text(json.dumps(item), encoding="utf-8")
    zoos, shops = {"source": str(zoo)}, {"source": str(shop), "format": "jsonl"}
    for number, sources in enumerate(((zoos, shops), (shops, zoos))):
        held_out = {"mine": str(tmp_path / "sets" / "mine.jsonl")}
        given = settings(*sources, tokenizer=str(tokenizer), held_out=held_out)
        card = preprocess(given, tmp_path / str(number))
        assert card.splits["mine"] == 1 and not card.gold.missing
        with located_databases(tmp_path / str(number), held_out=True) as where:
            assert "extra" in {path.stem for path in Path(where).rglob("*.sqlite")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "a"}, "source and sources are both set"),
        ({"format": "hotel"}, "the format is hotel, which reads no questions"),
        ({"databases": "duckdb:////data/{db_id}.duckdb"}, "no source can have databases of its own"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings({"source": "b", "databases": "c"}, **values)
    for weight in (0, -1, "nan", "inf", 101):
        with pytest.raises(ValidationError):
            settings({"source": "b", "weight": weight})


def test_sources_in_a_bucket(shop: Path, zoo: Path, tokenizer: Path, bucket: str, tmp_path: Path) -> None:
    uris = [push_folder(folder, f"s3://{bucket}/inputs") for folder in (zoo, shop)]
    given = settings({"source": uris[0]}, {"source": uris[1], "format": "jsonl"}, tokenizer=str(tokenizer))
    card = preprocess(given, tmp_path / "dataset")
    assert card.databases == f"{uris[0]}/database"
    assert card.other_databases == {"shop": f"{uris[1]}/databases"}
    with located_databases(tmp_path / "dataset") as where:
        assert {path.stem for path in Path(where).rglob("*.sqlite")} == {"zoo", "shop"}
