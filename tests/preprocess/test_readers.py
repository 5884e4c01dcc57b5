"""All layouts are read as the same records, and errors name the malformed one."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.build import Database
from chatmetrics.components.preprocess.readers import Record
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.preprocess.sources import read_source

QUERY = "SELECT count(*) FROM item"


def read(source: Path, kind: str, **settings: Any) -> list[Record]:
    values = {"source": str(source), "format": kind, **settings}
    return read_source(PreprocessSettings.model_validate(values)).records


def facts(records: list[Record]) -> list[tuple[str, str, str]]:
    return [(record.id, record.question, record.split) for record in records]


def write_array(path: Path, *questions: str, field: str = "question") -> None:
    items = [{field: question, "query": QUERY, "db_id": "shop", "query_toks": []} for question in questions]
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")


def test_spider_is_read_with_and_without_the_other_training_questions(shop: Path) -> None:
    write_array(shop / "train_spider.json", "a", "b")
    write_array(shop / "dev.json", "c")
    expected = [("train_spider:0", "a", "train"), ("train_spider:1", "b", "train"), ("dev:0", "c", "dev")]
    assert facts(read(shop, "spider")) == expected
    write_array(shop / "train_others.json", "d")
    assert facts(read(shop, "spider")) == [*expected[:2], ("train_others:0", "d", "train"), expected[2]]


def test_cspider_is_read_from_its_folder_and_from_one_file(shop: Path) -> None:
    write_array(shop / "train.json", "多少?")
    write_array(shop / "dev.json", "几个?")
    assert facts(read(shop, "cspider")) == [("train:0", "多少?", "train"), ("dev:0", "几个?", "dev")]
    alone = shop.parent / "matched.json"
    items = [
        {"question_zh": "多少?", "question": "How many?", "query": QUERY, "db_id": "shop", "split": "train"},
        {"question_zh": "几个?", "query": QUERY, "db_id": "shop", "split": "dev"},
    ]
    alone.write_text(json.dumps(items), encoding="utf-8")
    expected = [("matched:0", "多少?", "train"), ("matched:1", "几个?", "dev")]
    assert facts(read(alone, "cspider", databases=str(shop))) == expected


def test_jsonl_takes_ids_and_splits_from_the_records(shop: Path) -> None:
    record = {"id": 7, "question": " a ", "sql": QUERY, "db_id": "shop", "split": "unseen wording"}
    (shop / "dev.jsonl").write_text("\n" + json.dumps(record) + "\n\n", encoding="utf-8")
    assert facts(read(shop, "jsonl"))[-1] == ("7", "a", "unseen wording")
    assert Counter(split for _, _, split in facts(read(shop, "jsonl"))) == {"train": 5, "unseen wording": 1}


def test_csv_written_by_a_spreadsheet_is_read(shop: Path) -> None:
    rows = 'question,sql,db_id,split\r\n"上海的""酒店"",\r\n多少?",SELECT 1,shop,\r\nb\u2028c,SELECT 2,shop,dev\r\n'
    (shop / "mine.csv").write_bytes(rows.encode("utf-8-sig"))
    expected = [("mine:1", '上海的"酒店",\r\n多少?', "train"), ("mine:2", "b\u2028c", "dev")]
    assert facts(read(shop / "mine.csv", "csv")) == expected


BIRD = [
    {"question_id": 0, "db_id": "shop", "question": "How many?", "evidence": " ", "SQL": QUERY, "difficulty": "simple"},
    {"question_id": 1, "db_id": "shop", "question": "a", "evidence": "a is b", "SQL": QUERY, "difficulty": "moderate"},
]
KAGGLE = [{"db_id": "shop", "query": QUERY, "query_toks": ["SELECT"], "question": "How many?", "sql": {}}]
SYNONYMS = [{"db_id": "shop", "SpiderQuestion": "x", "SpiderSynQuestion": "How many?", "query": QUERY}]


@pytest.mark.parametrize("kind", ["spider", "jsonl", "csv"])
@pytest.mark.parametrize("records", [BIRD, KAGGLE, SYNONYMS], ids=["BIRD", "KaggleDBQA", "Spider-Syn"])
def test_fields_of_benchmarks_are_known(shop: Path, kind: str, records: list[dict[str, Any]]) -> None:
    (shop / "mine.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    read_records = read(shop / "mine.json", kind)
    assert facts(read_records)[0] == ("mine:0", "How many?", "train")
    assert {record.sql for record in read_records} == {QUERY}


def test_evidence_is_read(shop: Path) -> None:
    (shop / "mine.json").write_text(json.dumps(BIRD), encoding="utf-8")
    assert [record.evidence for record in read(shop / "mine.json", "spider")] == ["", "a is b"]
    (shop / "mine.json").write_text(json.dumps([BIRD[1] | {"evidence": ["a"]}]), encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.json\[0\]: the field 'evidence' is not a string but list"):
        read(shop / "mine.json", "spider")


def test_fields_with_other_names_are_mapped(shop: Path) -> None:
    (shop / "mine.csv").write_text("NL;Statement;DB_ID;Set\na;SELECT 1;shop;dev\nb;SELECT 2;shop;\n", "utf-8")
    fields = {"question": "nl", "sql": "statement", "split": "set"}
    assert facts(read(shop / "mine.csv", "csv", fields=fields)) == [("mine:2", "b", "train"), ("mine:1", "a", "dev")]
    with pytest.raises(InputError) as caught:
        read(shop / "mine.csv", "csv", fields={"sql": "query"})
    assert str(caught.value) == (
        f"{shop / 'mine.csv'}:2: the field 'question' is missing; the record has NL, Statement, DB_ID, Set; "
        "--set preprocess.fields.question=NAME if it has another name"
    )


@pytest.mark.parametrize(
    "name",
    ["Spider-DK.json", "test.json", "dev.json", "spider_syn.json", "my-test.jsonl", "validation.csv", "dev_new.csv"],
)
def test_questions_for_scoring_are_not_trained_on(shop: Path, name: str) -> None:
    write_array(shop / name, "a", "b")
    for kind in ("spider", "jsonl"):
        with pytest.raises(InputError, match=rf"{name}: by its name, its questions are for scoring"):
            read(shop / name, kind)
    record = {"question": "a", "sql": QUERY, "db_id": "shop"}
    (shop / name).write_text(json.dumps([record | {"split": "train"}, record | {"split": "dev"}]), encoding="utf-8")
    assert [record.split for record in read(shop / name, "jsonl")] == ["train", "dev"]


@pytest.mark.parametrize("name", ["train_syn.json", "latest.json", "developers.json", "contest.jsonl"])
def test_other_names_are_of_training_data(shop: Path, name: str) -> None:
    write_array(shop / name, "a", "b")
    assert {record.split for record in read(shop / name, "spider")} == {"train"}


@pytest.mark.parametrize(("kind", "suffix"), [("spider", "json"), ("jsonl", "jsonl"), ("csv", "csv")])
def test_a_test_set_next_to_the_training_set_is_reported(
    shop: Path, kind: str, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in shop.glob("*.jsonl"):
        path.unlink()
    write_array(shop / f"train.{suffix}", "a", "b")
    write_array(shop / f"test.{suffix}", "c")
    assert {record.question for record in read(shop, kind)} == {"a", "b"}
    assert f"test.{suffix} is not used; preprocess.held_out.test=PATH makes it" in capfd.readouterr().err


def test_own_training_data_may_have_any_form(shop: Path) -> None:
    (shop / "train.jsonl").rename(shop / "train.json")
    assert len(read(shop, "jsonl")) == len(read(shop, "csv")) > 1
    (shop / "train.csv").touch()
    with pytest.raises(InputError, match=r"has train\.json and train\.csv; keep one of them"):
        read(shop, "jsonl")


@pytest.mark.parametrize(
    "layout", ["databases/shop/shop.sqlite", "databases/shop.sqlite", "database/shop/shop.sqlite", "shop.sqlite"]
)
def test_databases_are_found_in_all_layouts(shop: Path, layout: str) -> None:
    content = (shop / "databases/shop/shop.sqlite").read_bytes()
    shutil.rmtree(shop / "databases")
    (shop / layout).parent.mkdir(parents=True, exist_ok=True)
    (shop / layout).write_bytes(content)
    source = read_source(PreprocessSettings(source=str(shop), format="jsonl"))
    assert Database.named_by(source, source.records[0]).path == shop / layout


@pytest.mark.parametrize("name", ["none", "../shop", ""])
def test_a_missing_database_is_named_with_its_record(shop: Path, name: str) -> None:
    (shop / "train.jsonl").write_text(json.dumps({"question": "a", "sql": QUERY, "db_id": name}), encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.jsonl:1: the field 'db_id'"):
        source = read_source(PreprocessSettings(source=str(shop), format="jsonl"))
        Database.named_by(source, source.records[0])


GOOD = {"question": "a", "sql": QUERY, "query": QUERY, "db_id": "shop"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"question": ...}, "the field 'question' is missing", id="missing"),
        pytest.param({"db_id": 3}, "the field 'db_id' is not a string but int", id="number"),
        pytest.param({"question": None}, "the field 'question' is not a string but NoneType", id="null"),
        pytest.param({"question": " \n"}, "the field 'question' is empty", id="empty"),
        pytest.param({"split": ["dev"]}, "the field 'split' is not a string but list", id="split"),
        pytest.param({"question": "\ud83c"}, "the field 'question' contains a lone surrogate", id="surrogate"),
        pytest.param({"id": "same"}, "the field 'id': 'same' was already used at", id="duplicate id"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "spider"])
def test_a_malformed_record_is_named(tmp_path: Path, kind: str, change: dict[str, Any], message: str) -> None:
    bad = {name: value for name, value in (GOOD | change).items() if value is not ...}
    records = [GOOD | {"id": "same"}, bad]
    path = tmp_path / ("train.jsonl" if kind == "jsonl" else "train_spider.json")
    text = "\n".join(map(json.dumps, records)) if kind == "jsonl" else json.dumps(records)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read(tmp_path, kind)
    assert str(error.value).startswith(f"{path}:2: " if kind == "jsonl" else f"{path}[1]: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("train.jsonl", b'{"question": "a"\n', "train.jsonl:1: not JSON", id="not JSON"),
        pytest.param("train.jsonl", b'"a"\n', "train.jsonl:1: not an object", id="not an object"),
        pytest.param("train.jsonl", b"[" * 100_000, "train.jsonl: JSON is nested too deeply", id="deep"),
        pytest.param("train.jsonl", b"", "contains no questions", id="empty file"),
        pytest.param("train_spider.json", b"{}", "train_spider.json:1: the field 'db_id' is missing", id="no fields"),
        pytest.param("train_spider.json", b"[{]", "train_spider.json: not JSON", id="broken array"),
        pytest.param("train.csv", b"question,db_id\na,shop\n", "train.csv:2: the field 'sql' is missing", id="column"),
        pytest.param(
            "train.csv", b"question,db_id,sql\na\n", "train.csv:2: the field 'db_id' is missing", id="short row"
        ),
        pytest.param("train.csv", b"question,db_id,sql\na,b,c,d\n", "train.csv:2: more values", id="long row"),
        pytest.param(
            "train.csv", b'question,db_id,sql\n"a', "train.csv:2: not valid CSV (unexpected end", id="open quote"
        ),
        pytest.param("train.csv", "question\né".encode("latin-1"), "train.csv: not UTF-8 text (byte 9)", id="latin-1"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    kind = {"jsonl": "jsonl", "json": "spider", "csv": "csv"}[name.rpartition(".")[2]]
    with pytest.raises(InputError) as error:
        read(tmp_path, kind)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"shop": {}}, "not a JSON array of schemas with a db_id each"),
        ([{"db_id": ["shop"]}], "not a JSON array of schemas with a db_id each"),
        ([{"db_id": 3}], "not a JSON array of schemas with a db_id each"),
        ([{"db_id": "shop", "column_names": []}, {"db_id": "shop"}], "two different entries with the db_id 'shop'"),
    ],
)
def test_malformed_tables_are_named(tmp_path: Path, entries: object, message: str) -> None:
    write_array(tmp_path / "train.json", "a")
    (tmp_path / "tables.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(InputError, match=rf"tables\.json: {message}"):
        read(tmp_path, "spider")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "", "format": "jsonl"}, "preprocess.source is empty"),
        ({"source": "nowhere", "format": "jsonl"}, "nowhere: no such file or folder"),
        ({"source": ".", "format": "jsonl", "databases": "nowhere"}, "nowhere: no such folder"),
        ({"source": ".", "format": "csv"}, "train.csv: no such file"),
        ({"source": ".", "format": "spider"}, "contains neither train_spider.json nor train.json"),
    ],
)
def test_a_wrong_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        read_source(PreprocessSettings.model_validate(settings))


def numbered(folder: Path, count: int) -> Path:
    """Write questions, two for each query."""
    records = ({"question": f"q{n}", "sql": f"SELECT {n // 2}", "db_id": "shop"} for n in range(count))
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


SPELLINGS = (
    "SELECT name FROM item WHERE id = {}",
    "SELECT name FROM item WHERE id = {};",
    "select NAME from ITEM where ID = {}",
    "SELECT name\nFROM item\nWHERE id = {}",
    "SELECT name FROM item -- the item\nWHERE id = {}",
    'SELECT t1."name" FROM [item] AS t1 WHERE (t1.id = {}) ;',
)


@pytest.mark.parametrize("seed", range(5))
def test_a_query_is_held_out_in_all_its_spellings(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "mine.jsonl"
    records = [
        {"question": f"{sql} {number}", "sql": sql.format(number), "db_id": "shop"}
        for number in range(3)
        for sql in SPELLINGS
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    found = read(path, "jsonl", dev_fraction=0.2, seed=seed)
    assert Counter(record.split for record in found) == {"train": 12, "dev": 6}
    numbers = {split: {record.question[-1] for record in found if record.split == split} for split in ("train", "dev")}
    assert not numbers["train"] & numbers["dev"]


@pytest.mark.parametrize("seed", range(5))
def test_a_question_is_in_one_split_with_all_its_queries(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "mine.jsonl"
    questions = ["How many items?", "how many  items", "Items!", "items", "Names?", "Prices?", "酒店？", "酒店"]
    records = [
        {"question": question, "sql": f"SELECT {number // 2 if number % 2 else number + 9}", "db_id": db_id}
        for db_id in ("a", "b")
        for number, question in enumerate(questions)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    found = read(path, "jsonl", dev_fraction=0.4, seed=seed)
    dev = {(r.db_id, "".join(filter(str.isalnum, r.question.lower()))) for r in found if r.split == "dev"}
    training = {(r.db_id, "".join(filter(str.isalnum, r.question.lower()))) for r in found if r.split == "train"}
    assert dev and training and not dev & training
    queries = [{(r.db_id, r.sql) for r in found if r.split == split} for split in ("train", "dev")]
    assert not queries[0] & queries[1]


def test_a_source_that_cannot_be_split_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    records = [{"question": "How many?", "sql": f"SELECT {number}", "db_id": "shop"} for number in range(9)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert {record.split for record in read(path, "jsonl", dev_fraction=0.3)} == {"train"}
    assert "warning: preprocess: no questions are held out" in capfd.readouterr().err


def test_queries_are_held_out_by_seed_if_there_are_no_dev_questions(tmp_path: Path) -> None:
    path = numbered(tmp_path, 200)
    first = read(path, "jsonl", dev_fraction=0.2)
    splits = {split: {record.sql for record in first if record.split == split} for split in ("train", "dev")}
    assert (len(splits["train"]), len(splits["dev"])) == (80, 20)
    assert not splits["train"] & splits["dev"]
    assert read(path, "jsonl", dev_fraction=0.2) == first
    assert read(path, "jsonl", dev_fraction=0.2, seed=7) != first
    assert {record.split for record in read(path, "jsonl", dev_fraction=0)} == {"train"}


def test_a_limit_applies_to_both_splits_and_keeps_the_order(tmp_path: Path) -> None:
    path = numbered(tmp_path, 200)
    records = read(path, "jsonl", limit=15)
    assert Counter(record.split for record in records) == {"train": 15, "dev": 15}
    positions = [int(record.id.rpartition(":")[2]) for record in records]
    assert positions == sorted(positions[:15]) + sorted(positions[15:])
    assert positions[:15] != list(range(1, 16))


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_all_of_spider_is_read() -> None:
    records = read(Path(os.environ["CHATMETRICS_SPIDER_DIR"]), "spider")
    assert Counter(record.split for record in records) == {"train": 8659, "dev": 1034}


@pytest.mark.skipif(
    not {"CHATMETRICS_SPIDER_DIR", "CHATMETRICS_CSPIDER_FILE"} <= os.environ.keys(),
    reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_CSPIDER_FILE is not set",
)
def test_chinese_questions_are_read_with_spiders_databases() -> None:
    spider, file = os.environ["CHATMETRICS_SPIDER_DIR"], os.environ["CHATMETRICS_CSPIDER_FILE"]
    source = read_source(PreprocessSettings(source=file, format="cspider", databases=spider))
    assert {record.split for record in source.records} == {"train", "dev"}
    assert {record.db_id for record in source.records if Database.named_by(source, record).path is None} == {"wta_1"}
    assert len(source.tables) == 166
