"""Sets of questions that are never trained on, in the layouts of public benchmarks."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.preprocess.dataset_card import DatasetCard
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.mirror import push_folder

COUNT = "SELECT count(*) FROM tree"
TABLES = {
    "db_id": "orchard",
    "table_names_original": ["tree"],
    "table_names": ["tree"],
    "column_names_original": [[-1, "*"], [0, "id"], [0, "c3"]],
    "column_names": [[-1, "*"], [0, "id"], [0, "species of the tree"]],
    "column_types": ["text", "number", "text"],
    "primary_keys": [1],
    "foreign_keys": [],
}

Build = Callable[..., DatasetCard]


def write_orchard(path: Path, trees: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE tree (id INTEGER PRIMARY KEY, c3 TEXT)")
        connection.executemany("INSERT INTO tree (c3) VALUES (?)", [("AP",)] * trees)


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def build(shop: Path, tokenizer: Path, tmp_path: Path) -> Build:
    def run(output: str = "out", **values: Any) -> DatasetCard:
        common = {"source": str(shop), "format": "jsonl", "tokenizer": str(tokenizer), "workers": 1}
        return preprocess(PreprocessSettings.model_validate(common | values), tmp_path / output)

    return run


def spider_syn(folder: Path) -> Path:
    write_orchard(folder / "database/orchard/orchard.sqlite")
    record = {"db_id": "orchard", "SpiderQuestion": "How many?", "SpiderSynQuestion": "How many fruit trees?"}
    return write_json(folder / "dev.json", [record | {"query": COUNT}])


def spider_dk(folder: Path) -> Path:
    write_orchard(folder / "database/orchard/orchard.sqlite")
    write_json(folder / "tables.json", [TABLES])
    record = {"type": 0, "db_id": "orchard", "question": "How many fruit trees?", "query": COUNT}
    return write_json(folder / "Spider-DK.json", [record])


def bird(folder: Path) -> Path:
    write_orchard(folder / "dev_databases/orchard/orchard.sqlite")
    record = {"question_id": 0, "db_id": "orchard", "question": "How many fruit trees?", "evidence": "", "SQL": COUNT}
    write_json(folder / "dev.json", [record | {"difficulty": "simple"}])
    return folder


def kaggle_dbqa(folder: Path) -> Path:
    write_orchard(folder / "databases/orchard/orchard.sqlite")
    write_json(folder / "KaggleDBQA_tables.json", [TABLES | {"column_descriptions": ["*", "", ""]}])
    record = {"db_id": "orchard", "query": COUNT, "question": "How many fruit trees?", "sql": {}}
    write_json(folder / "examples/orchard_test.json", [record])
    write_json(folder / "examples/orchard_fewshot.json", [record | {"question": "Not this one."}])
    return folder / "examples"


def spider_test(folder: Path) -> Path:
    write_orchard(folder / "test_database/orchard/orchard.sqlite")
    write_orchard(folder / "database/orchard/orchard.sqlite", trees=1)
    write_json(folder / "test_tables.json", [TABLES])
    write_json(folder / "tables.json", [TABLES | {"column_types": ["text", "number", "number"]}])
    record = {"db_id": "orchard", "query": COUNT, "question": "How many fruit trees?", "sql": {}}
    return write_json(folder / "test.json", [record])


def csv(folder: Path) -> Path:
    write_orchard(folder / "orchard.sqlite")
    (folder / "mine.csv").write_text(f"db_id;Question;SQL\norchard;How many fruit trees?;{COUNT}\n", encoding="utf-8")
    return folder / "mine.csv"


@pytest.mark.parametrize("layout", [spider_syn, spider_dk, bird, kaggle_dbqa, spider_test, csv])
def test_each_layout_is_found_with_its_databases(build: Build, tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    (tmp_path / "set").mkdir()
    source = layout(tmp_path / "set")
    plain = build("plain")
    card = build("out", held_out={"new": str(source)})
    (example,) = read_examples(tmp_path / "out/held_out.jsonl")
    assert (example.split, example.question, example.sql) == ("new", "How many fruit trees?", COUNT)
    assert example.system.startswith("CREATE TABLE tree (")
    assert example.difficulty == ("simple" if layout is bird else "")
    has_tables = layout in (spider_dk, kaggle_dbqa, spider_test)
    assert ("species of the tree" in example.system) == has_tables
    assert "c3 number" not in example.system
    assert not any(problem.db_id == "orchard" for problem in card.gold.failing)
    assert card.gold.checked == plain.gold.checked + 1
    assert list(card.held_out_databases) == ["orchard"]
    (folder,) = card.held_out_databases.values()
    assert any(path.is_file() for path in Path(folder).rglob("orchard.sqlite"))
    assert card.splits == plain.splits | {"new": 1}
    assert card.held_out == {"new": str(source)}
    for name in ("train.jsonl", "dev.jsonl"):  # no other question changes
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert "| held out: new | /" in (tmp_path / "out/dataset_card.md").read_text("utf-8")


def test_a_dataset_without_sets_has_no_file_for_them(build: Build, tmp_path: Path) -> None:
    assert build().held_out == {}
    assert not (tmp_path / "out/held_out.jsonl").exists()


def test_other_databases_are_those_of_the_source(build: Build, tmp_path: Path) -> None:
    source = write_json(tmp_path / "syn.json", [{"db_id": "shop", "nl": "Number of goods?", "query": COUNT}])
    card = build(held_out={"syn": {"source": str(source), "fields": {"question": "nl"}}})
    assert card.held_out_databases == {}
    assert read_examples(tmp_path / "out/held_out.jsonl")[0].system.startswith("CREATE TABLE item (")


def test_the_databases_can_be_in_a_folder_of_their_own(build: Build, tmp_path: Path) -> None:
    write_orchard(tmp_path / "elsewhere/orchard.sqlite")
    source = write_json(tmp_path / "set/mine.json", [{"db_id": "orchard", "question": "How many?", "sql": COUNT}])
    with pytest.raises(InputError, match=r"mine\.json\[0\]: the field 'db_id': database 'orchard' is missing"):
        build(held_out={"mine": str(source)})
    card = build(held_out={"mine": {"source": str(source), "databases": str(tmp_path / "elsewhere")}})
    assert card.held_out_databases == {"orchard": str(tmp_path / "elsewhere")}


def test_two_databases_of_one_name_are_refused_unless_they_are_equal(build: Build, tmp_path: Path) -> None:
    first, second = (spider_syn(tmp_path / name) for name in ("first", "second"))
    sets = {"first": str(first), "second": str(second)}
    assert build(held_out=sets).splits["second"] == 1
    (tmp_path / "second/database/orchard/orchard.sqlite").unlink()
    write_orchard(tmp_path / "second/database/orchard/orchard.sqlite", trees=9)
    with pytest.raises(
        InputError, match=r"^preprocess\.held_out\.second: .* are different databases with the name 'orchard'; rename"
    ):
        build(held_out=sets)


def test_a_question_of_a_set_is_not_trained_on(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"db_id": "shop", "question": "how many ITEMS are there", "sql": "SELECT count(id) FROM item"}
    source = write_json(tmp_path / "mine.json", [record])
    card = build(held_out={"mine": str(source)})
    assert card.splits == {"train": 4, "dev": 1, "mine": 1}
    assert "How many items are there?" not in (tmp_path / "out/train.jsonl").read_text("utf-8")
    assert (
        "1 training questions are left out, because a held-out set has them; for example "
        f"{tmp_path / 'shop' / 'train.jsonl'}:1 is in mine"
    ) in capsys.readouterr().err


def test_a_question_that_is_not_drawn_from_a_set_is_not_trained_on_either(build: Build, tmp_path: Path) -> None:
    questions = ("How many items are there?", "有多少商品?", "Who bought it?")
    records = [{"db_id": "shop", "question": question, "sql": "SELECT 1"} for question in questions]
    source = write_json(tmp_path / "mine.json", records)
    for seed in range(5):  # each draws one question of the set, and one of those that are trained on
        build(limit=1, seed=seed, held_out={"mine": str(source)})
        trained = {example.question for example in read_examples(tmp_path / "out/train.jsonl")}
        assert trained.isdisjoint(questions)


def test_the_limit_applies_to_each_set(build: Build, tmp_path: Path) -> None:
    records = [{"db_id": "shop", "question": f"{n} goods?", "sql": f"SELECT {n} FROM item"} for n in range(9)]
    source = write_json(tmp_path / "mine.json", records)
    assert build(limit=2, held_out={"a": str(source), "b": str(source)}).splits == {
        "train": 2,
        "dev": 1,
        "a": 2,
        "b": 2,
    }


def test_a_set_for_databases_without_questions(build: Build, shop: Path, tmp_path: Path) -> None:
    source = write_json(tmp_path / "mine.json", [{"db_id": "shop", "question": "How many?", "sql": "SELECT 1"}])
    card = build(source="", format="none", databases=str(shop), held_out={"mine": str(source)})
    assert card.splits == {"mine": 1}
    assert read_examples(tmp_path / "out/train.jsonl") == read_examples(tmp_path / "out/dev.jsonl") == []


def test_what_is_not_a_set_is_named(build: Build, tmp_path: Path) -> None:
    def refused(message: str, source: Path) -> None:
        with pytest.raises(InputError, match=message):
            build(held_out={"mine": str(source)})

    refused(r"typo\.json: no such file or folder; check preprocess\.held_out\.mine$", tmp_path / "typo.json")
    (tmp_path / "empty").mkdir()
    refused(r"empty: has no dev\.json, test\.json or \*_test\.json; name the file", tmp_path / "empty")
    for name in ("dev.json", "test.json"):
        write_json(tmp_path / "both" / name, [])
    refused(r"both: has dev\.json and test\.json; name one of the files; check", tmp_path / "both")
    refused(r"contains no questions; check preprocess\.held_out\.mine$", tmp_path / "both/dev.json")
    wrong = write_json(tmp_path / "wrong.json", [{"db_id": "shop", "question": "How many?"}])
    refused(
        r"wrong\.json\[0\]: the field 'sql' is missing; .*--set preprocess\.held_out\.mine\.fields\.sql=NAME", wrong
    )
    records = [{"db_id": "shop", "question": "How many?", "sql": "SELECT 1", "split": "mine"}]
    source = write_json(tmp_path / "source.json", records)
    with pytest.raises(InputError, match=r"source\.json\[0\]: has the split 'mine' too; rename preprocess\.held_out"):
        build(source=str(source), databases=str(tmp_path / "shop"), held_out={"mine": str(wrong)})


@pytest.mark.parametrize("name", ["train", "dev", "", "a/b", "../x", "x" * 41, "a\nb"])
def test_a_name_that_cannot_be_a_split_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="held_out"):
        PreprocessSettings.model_validate({"held_out": {name: "mine.json"}})


def test_a_set_in_a_bucket(build: Build, bucket: str, tmp_path: Path) -> None:
    kaggle_dbqa(tmp_path / "set")
    uri = push_folder(tmp_path / "set", f"s3://{bucket}/inputs")
    held_out = {"source": f"{uri}/examples", "databases": f"{uri}/databases"}
    card = build(held_out={"kaggle": held_out})
    assert card.held_out_databases == {"orchard": f"{uri}/databases"}
    assert card.held_out == {"kaggle": f"{uri}/examples"}
