"""The whole step on real files: its output, its errors, and what it does not touch."""

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.preprocess.dataset_card import TOO_LONG, DatasetCard
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings

FILES = {
    "train.jsonl",
    "dev.jsonl",
    "dataset_info.json",
    "dataset_card.json",
    "dataset_card.md",
    "llama_factory.yaml",
    "README.md",
}


def settings(shop: Path, model: Path, **values: Any) -> PreprocessSettings:
    common = {"source": str(shop), "format": "jsonl", "tokenizer": str(model), "workers": 1}
    return PreprocessSettings.model_validate(common | values)


def count_tokens(tokenizer: Path, examples: list[Example]) -> list[int]:
    """Tokens of each example as in training: prompt and answer as one text, the tokenizer's BOS, and EOS."""
    whole = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    whole.no_truncation()
    prompts = (DEEPSEEK3.prompt(example.system, example.instruction, example.input) for example in examples)
    texts = [prompt + example.output for prompt, example in zip(prompts, examples, strict=True)]
    return [len(whole.encode(text).ids) + 1 for text in texts]


def all_examples(dataset: Path) -> list[Example]:
    return [example for name in ("train", "dev") for example in read_examples(dataset / f"{name}.jsonl")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_schema_the_alpaca_fields_are_the_published_ones(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    preprocess(settings(shop, tokenizer, schema="none"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    record = json.loads((tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert {name: record[name] for name in ("instruction", "input", "output", "system")} == {
        "instruction": "Using the database 'shop', translate the following natural language question into a SQL query.",
        "input": "有多少商品?",
        "output": "SELECT count(*) FROM item",
        "system": "",
    }
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))
    assert info["chatmetrics_train"] == {
        "file_name": "train.jsonl",
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }


@pytest.mark.parametrize(
    ("form", "begins"), [("ddl", "CREATE TABLE item ("), ("m-schema", "【DB_ID】 shop\n【Schema】")]
)
def test_the_schema_is_in_the_system_field(shop: Path, tokenizer: Path, tmp_path: Path, form: str, begins: str) -> None:
    preprocess(settings(shop, tokenizer, schema=form, sample_values=1), tmp_path / "out")
    examples = read_examples(tmp_path / "out" / "train.jsonl")
    (system,) = {example.system for example in examples}
    assert system.startswith(begins)
    assert "tea" in system
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))
    assert info["chatmetrics_dev"]["columns"]["system"] == "system"


def test_the_card_has_counts_and_results_of_gold_queries(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(shop / "databases" / "bare.sqlite")) as connection:
        connection.executescript("CREATE TABLE t (a INT)")
    with (shop / "dev.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "All of it?", "sql": "SELECT a FROM t", "db_id": "bare"}) + "\n")
    card = preprocess(settings(shop, tokenizer), tmp_path / "out")
    assert card.splits == {"train": 5, "dev": 2}
    assert card.query_types == {
        "single table": {"train": 2, "dev": 1},
        "2-3 table join": {"dev": 1},
        "subquery": {"train": 1},
        "aggregate": {"train": 2},
    }
    assert card.examples_by_database == {"bare": {"dev": 1}, "shop": {"train": 5, "dev": 1}}
    assert [(item.id, item.failure) for item in card.gold.failing] == [("train:5", "unknown table or column")]
    assert (card.gold.checked, card.gold.empty, card.gold.unpopulated) == (7, ["train:4"], {"bare": 1})
    assert Path(card.databases) == shop / "databases"
    assert DatasetCard.read(tmp_path / "out") == card
    text = (tmp_path / "out" / "dataset_card.md").read_text(encoding="utf-8")
    assert "| train:5 | shop | train | unknown table or column | no such column: buyer |" in text


def test_the_card_counts_tokens_as_training_does(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    card = preprocess(settings(shop, tokenizer), tmp_path / "out")
    examples = all_examples(tmp_path / "out")
    lengths = sorted(count_tokens(tokenizer, examples))
    assert (card.tokens.minimum, card.tokens.median, card.tokens.maximum) == (lengths[0], lengths[2], lengths[-1])
    assert sum(card.tokens.histogram.values()) == len(lengths)


def test_tokens_are_counted_with_a_tokenizer_without_the_prompts_special_tokens(
    shop: Path, tokenizer: Path, tmp_path: Path
) -> None:
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    content |= {"added_tokens": [], "post_processor": None, "truncation": None}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    card = preprocess(settings(shop, tmp_path / "plain", template="deepseek3"), tmp_path / "out")
    examples = all_examples(tmp_path / "out")
    assert card.tokens.maximum == 1 + max(count_tokens(tmp_path / "plain", examples))


def test_a_schema_that_is_too_long_is_pruned_and_no_example_exceeds_the_cutoff(
    shop: Path, tokenizer: Path, tmp_path: Path
) -> None:
    whole = preprocess(settings(shop, tokenizer), tmp_path / "whole")
    cutoff = whole.tokens.minimum - 1
    card = preprocess(settings(shop, tokenizer, cutoff_length=cutoff), tmp_path / "out")
    examples = all_examples(tmp_path / "out")
    assert len(examples) + len(card.dropped) == 6
    assert card.pruned == {"shop": len(examples)} and len(examples) >= 3
    assert max(count_tokens(tokenizer, examples)) <= cutoff
    longest = max(len(example.system) for example in all_examples(tmp_path / "whole"))
    assert all("CREATE TABLE" in example.system and len(example.system) < longest for example in examples)
    assert "CREATE TABLE item" in examples[0].system


def test_questions_that_do_not_fit_are_dropped_and_counted_with_the_reason(
    shop: Path, tokenizer: Path, tmp_path: Path
) -> None:
    with (shop / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "长?", "sql": f"SELECT '{'长' * 600}'", "db_id": "shop"}) + "\n")
    card = preprocess(settings(shop, tokenizer, schema="none", cutoff_length=1000), tmp_path / "out")
    assert card.splits == {"train": 5, "dev": 1}
    (dropped,) = card.dropped
    assert (dropped.id, dropped.reason) == ("train:6", "instruction, question and query alone exceed the cutoff")
    assert dropped.tokens > 1000
    # Only the shorter questions leave room for a table.
    card = preprocess(settings(shop, tokenizer, cutoff_length=200), tmp_path / "small")
    assert {item.reason for item in card.dropped} == {
        "instruction, question and query alone exceed the cutoff",
        "no table of the schema fits next to the question",
    }
    with pytest.raises(InputError, match="no question fits 20 tokens"):
        preprocess(settings(shop, tokenizer, cutoff_length=20), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_card_counts_dropped_questions_by_split_and_reason(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    for name, count in (("train", 1), ("dev", 2)):
        with (shop / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            for _ in range(count):
                file.write(json.dumps({"question": "长" * 600, "sql": "SELECT 1", "db_id": "shop"}) + "\n")
    preprocess(settings(shop, tokenizer, cutoff_length=1000), tmp_path / "out")
    card = json.loads((tmp_path / "out" / "dataset_card.json").read_text(encoding="utf-8"))
    assert card["dropped_by_split"] == {"train": {TOO_LONG: 1}, "dev": {TOO_LONG: 2}}
    assert [item["id"] for item in card["dropped"] if item["split"] == "dev"] == ["dev:2", "dev:3"]
    text = (tmp_path / "out" / "dataset_card.md").read_text(encoding="utf-8")
    assert f"| dev | {TOO_LONG} | 2 |" in text


WAREHOUSE = """
CREATE TABLE delivery (id INTEGER PRIMARY KEY, crates INT, price REAL, amount REAL AS (crates * price));
CREATE VIEW turnover AS SELECT sum(amount) AS total FROM delivery;
CREATE VIEW broken AS SELECT * FROM gone;
CREATE VIRTUAL TABLE search USING fts5(note);
CREATE TABLE driver (id INTEGER PRIMARY KEY, name TEXT, cafe\u0301 TEXT);
INSERT INTO delivery (crates, price) VALUES (2, 1.5);
"""


def write_warehouse(folder: Path, *queries: str) -> Path:
    """A source with one question for each query, about a database of views, generated columns and full text."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "warehouse.sqlite")) as connection:
        connection.executescript(WAREHOUSE)
    records = [{"question": f"Crates, {n}?", "sql": sql, "db_id": "warehouse"} for n, sql in enumerate(queries)]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT amount FROM delivery", ""),
        ("SELECT total FROM turnover", ""),
        ('SELECT "amount", t.rowid FROM delivery AS t WHERE crates > (SELECT avg(crates) FROM delivery)', ""),
        ("WITH a AS (SELECT crates AS b FROM delivery) SELECT b FROM a", ""),
        ("SELECT note FROM search WHERE search MATCH 'apple' ORDER BY rank", ""),
        ("SELECT value FROM json_each('[1]')", ""),
        ("SELECT * FROM search_content", "no such table: search_content"),
        ("SELECT weight FROM delivery", "no such column: weight"),
        ("SELECT d.weight FROM delivery AS d", "no such column: d.weight"),
        ("SELECT x FROM broken", "no such table: broken"),
        ("SELECT a.id FROM delivery AS a WHERE EXISTS (SELECT 1 FROM lorry)", "no such table: lorry"),
        ("not a query", ""),
        ("PRAGMA hard_heap_limit = 1", ""),
        ('SELECT "cafe\u0301" FROM driver', ""),  # without such a column, SQLite takes a quoted name as a text
        ("SELECT cafe\u0301 FROM driver", "no such column: cafe\u0301"),  # prompts are in NFC, and show another name
    ],
)
@pytest.mark.parametrize("form", ["ddl", "m-schema"])
def test_the_card_counts_gold_queries_with_a_name_that_is_not_shown(
    tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str, sql: str, message: str
) -> None:
    source = write_warehouse(tmp_path / "source", "SELECT crates FROM delivery", sql)
    card = preprocess(settings(source, tokenizer, schema=form, dev_fraction=0), tmp_path / "out")
    found = [item.model_dump() for item in card.not_shown]
    expected = {"id": "train:2", "db_id": "warehouse", "split": "train", "message": message}
    assert found == ([expected] if message else [])
    assert len(read_examples(tmp_path / "out" / "train.jsonl")) == 2
    written = json.loads((tmp_path / "out" / "dataset_card.json").read_text(encoding="utf-8"))
    assert written["not_shown_by_split"] == ({"train": 1} if message else {})
    assert card.omitted == {"warehouse": {"broken": "no such table: main.gone"}}
    printed = capfd.readouterr().err
    assert "warning: preprocess: warehouse: broken is not in prompts" in printed
    assert (f"does not show: 1 train; for example train:2 ({message})" in printed) == bool(message)


def test_names_are_compared_with_the_pruned_schema(tokenizer: Path, tmp_path: Path) -> None:
    source = write_warehouse(tmp_path / "source", "SELECT crates FROM delivery", "SELECT name FROM driver")
    whole = preprocess(settings(source, tokenizer, dev_fraction=0), tmp_path / "whole")
    assert whole.not_shown == []
    cutoff = whole.tokens.minimum - 130  # leaves room for the table that the questions mention, and not for all
    card = preprocess(settings(source, tokenizer, dev_fraction=0, cutoff_length=cutoff), tmp_path / "out")
    assert [(item.id, item.message) for item in card.not_shown] == [("train:2", "no such table: driver")]
    card = preprocess(settings(source, tokenizer, dev_fraction=0, schema="none"), tmp_path / "none")
    assert card.not_shown == []


def test_several_workers_write_the_same_bytes_as_one(
    shop: Path, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (shop / "databases/shop/shop.sqlite").read_bytes()
    with (shop / "train.jsonl").open("a", encoding="utf-8") as file:
        for name in ("b", "a"):
            (shop / "databases" / f"{name}.sqlite").write_bytes(content)
            file.write(json.dumps({"question": name, "sql": "SELECT 1", "db_id": name}) + "\n")
    preprocess(settings(shop, tokenizer), tmp_path / "one")
    preprocess(settings(shop, tokenizer, workers=1000), tmp_path / "many")
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert "1000 workers are configured" in capfd.readouterr().err


def test_a_failed_run_keeps_the_old_dataset(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    preprocess(settings(shop, tokenizer), output)
    before = contents(output)
    (shop / "databases/shop/shop.sqlite").write_bytes(b"not a database")
    with pytest.raises(InputError, match=r"shop\.sqlite"):
        preprocess(settings(shop, tokenizer), output)
    assert contents(output) == before
    assert {path.name for path in tmp_path.iterdir()} == {"shop", "out"}


def test_a_full_disk_keeps_the_old_dataset(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    preprocess(settings(shop, tokenizer), output)
    before = contents(output)
    with (shop / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "x y " * (1 << 16), "sql": "SELECT 1", "db_id": "shop"}) + "\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            preprocess(settings(shop, tokenizer, cutoff_length=10**7), output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(output) == before
    assert {path.name for path in tmp_path.iterdir()} == {"shop", "out"}


def test_a_new_dataset_replaces_an_old_one_but_no_other_folder(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    preprocess(settings(shop, tokenizer), output)
    preprocess(settings(shop, tokenizer, limit=1), output)
    assert len(read_examples(output / "train.jsonl")) == 1
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(InputError, match="thesis: contains something that is not a dataset"):
        preprocess(settings(shop, tokenizer), tmp_path / "thesis")
    with pytest.raises(InputError, match="is a file"):
        preprocess(settings(shop, tokenizer), shop / "train.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "preprocess.tokenizer is empty"), ("{}", "it has no 'model'"), ("[", "cannot be read as a tokenizer")],
)
def test_an_invalid_tokenizer_is_named(shop: Path, tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(content or "", encoding="utf-8")
    values = settings(shop, folder) if content else settings(shop, folder, tokenizer="")
    with pytest.raises(InputError, match=message):
        preprocess(values, tmp_path / "out")


def test_the_hotel_dataset_contains_its_database(tokenizer: Path, tmp_path: Path) -> None:
    card = preprocess(settings(Path(), tokenizer, format="hotel", source="", limit=40), tmp_path / "out")
    assert card.databases == "databases"
    assert (tmp_path / "out" / card.databases / "hotel" / "hotel.sqlite").is_file()
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"databases"}
    assert card.splits["train"] == 40
    assert set(card.splits) == {"train", "unseen value", "unseen wording"}
    assert not card.gold.failing and not card.gold.empty and not card.dropped
    moved = shutil.copytree(tmp_path / "out", tmp_path / "moved")
    assert DatasetCard.read(moved) == card


def test_the_step_runs_in_kfps_local_runner(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    program = f"""
from kfp import local
from chatmetrics.components.preprocess.component import preprocess
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root={str(tmp_path / "root")!r})
task = preprocess(settings={settings(shop, tokenizer, workers=2).model_dump(by_alias=True)!r})
print("DATASET", task.outputs["dataset"].path)
print("METRICS", task.outputs["metrics"].metadata)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("DATASET", "METRICS")))
    assert len(read_examples(Path(lines["DATASET"]) / "train.jsonl")) == 5
    assert "'train': 5" in lines["METRICS"]


@pytest.mark.skipif(
    not {"CHATMETRICS_SPIDER_DIR", "CHATMETRICS_TOKENIZER_DIR"} <= os.environ.keys(),
    reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_TOKENIZER_DIR is not set",
)
def test_a_part_of_spider_fits_the_published_cutoff(tmp_path: Path) -> None:
    spider, tokenizer = Path(os.environ["CHATMETRICS_SPIDER_DIR"]), Path(os.environ["CHATMETRICS_TOKENIZER_DIR"])
    values = settings(spider, tokenizer, format="spider", schema="m-schema", sample_values=3, limit=40, workers=2)
    card = preprocess(values, tmp_path / "out")
    assert card.splits == {"train": 40, "dev": 40}
    assert card.tokens.maximum <= 2048
    assert card.gold.missing.keys() <= {"wta_1"}
    assert max(count_tokens(tokenizer, all_examples(tmp_path / "out"))) == card.tokens.maximum


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"sql_form": "canonical"}, "SELECT item.name FROM item WHERE item.id NOT IN (SELECT sale.item_id FROM sale)"),
        ({"sql_form": "from_first"}, "FROM item WHERE item.id NOT IN (FROM sale SELECT sale.item_id) SELECT item.name"),
        ({"plan": "tables"}, "Tables: item, sale\nSELECT name FROM item WHERE id NOT IN (SELECT item_id FROM sale)"),
        (
            {"sql_form": "canonical", "plan": "conditions"},
            "Tables: item, sale\nConditions: item.id NOT IN (...)\n"
            "SELECT item.name FROM item WHERE item.id NOT IN (SELECT sale.item_id FROM sale)",
        ),
    ],
)
def test_answers_have_the_form_of_the_settings_and_gold_queries_stay(
    shop: Path, tokenizer: Path, tmp_path: Path, values: dict[str, Any], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = preprocess(settings(shop, tokenizer, **values), tmp_path / "out")
    examples = {example.id: example for example in all_examples(tmp_path / "out")}
    assert examples["train:3"].output == answer
    assert examples["train:3"].sql == "SELECT name FROM item WHERE id NOT IN (SELECT item_id FROM sale)"
    assert examples["dev:1"].output != examples["dev:1"].sql
    # This one names a column that does not exist.
    assert examples["train:5"].output == "SELECT buyer FROM sale"
    assert card.not_rewritten_by_split == {"a name cannot be resolved": {"train": 1}}
    assert (card.sql_form, card.plan) == (values.get("sql_form", "as_given"), values.get("plan", "none"))
    lengths = sorted(count_tokens(tokenizer, list(examples.values())))
    assert (card.tokens.minimum, card.tokens.maximum) == (lengths[0], lengths[-1])
    assert "answers that are the query as given: 1 (a name cannot be resolved)" in capsys.readouterr().err
    assert "| train:5 | shop | train | a name cannot be resolved |" in card.markdown()


@pytest.fixture
def with_other_databases(shop: Path) -> Path:
    """The shop, and three more databases with training questions; `zoo` has only a dev question."""
    schemas = {
        "school": "CREATE TABLE child (id INTEGER PRIMARY KEY); CREATE TABLE mark (of INT REFERENCES child, n INT);",
        "garden": "CREATE TABLE Item (id INT); CREATE TABLE bed (id INT); CREATE TABLE plant (id INT, bed_id INT);",
        "zoo": "CREATE TABLE animal (id INT);",
    }
    tables = {"school": "mark", "garden": "bed", "zoo": "animal"}
    for name, script in schemas.items():
        with closing(sqlite3.connect(shop / "databases" / f"{name}.sqlite")) as connection:
            connection.executescript(script)
        record = {"question": f"How many in {name}?", "sql": f"SELECT count(*) FROM {tables[name]}", "db_id": name}
        with (shop / ("dev.jsonl" if name == "zoo" else "train.jsonl")).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return shop


def tables_of(example: Example) -> list[str]:
    return re.findall(r"CREATE TABLE (\S+) \(", example.system)


def test_training_prompts_show_tables_of_other_databases(
    with_other_databases: Path, tokenizer: Path, tmp_path: Path
) -> None:
    values = settings(with_other_databases, tokenizer, noise_tables=3)
    card = preprocess(values, tmp_path / "out")
    train, dev = (read_examples(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "dev"))
    (system,) = {example.system for example in train if example.db_id == "shop"}
    shown = tables_of(train[0])
    assert len(shown) == 5
    assert [name for name in shown if name in ("item", "sale")] == ["item", "sale"]
    # `Item` of the garden has the name of a table of the shop, and `animal` is in no training database.
    assert set(shown) - {"item", "sale"} <= {"child", "mark", "bed", "plant"}
    assert ("REFERENCES child" in system) == ({"child", "mark"} <= set(shown))
    assert "REFERENCES item" in system
    assert {tuple(tables_of(example)) for example in dev} == {("item", "sale"), ("animal",)}
    assert (card.noise_tables, card.without_noise, card.not_shown_by_split) == (3, {}, {"train": 1})
    preprocess(values, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    preprocess(values.model_copy(update={"seed": 7}), tmp_path / "other")
    assert read_examples(tmp_path / "other" / "train.jsonl")[0].system != system


def test_noise_is_left_out_where_it_does_not_fit(
    with_other_databases: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = preprocess(settings(with_other_databases, tokenizer), tmp_path / "plain")
    cutoff = plain.tokens.maximum
    card = preprocess(settings(with_other_databases, tokenizer, noise_tables=9, cutoff_length=cutoff), tmp_path / "out")
    assert card.without_noise["shop"] == 5
    assert (card.pruned, card.dropped, card.tokens.maximum) == ({}, [], cutoff)
    same = [tables_of(example) for example in read_examples(tmp_path / "out" / "train.jsonl")][:5]
    assert same == [["item", "sale"]] * 5
    assert "training examples without tables of other databases" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise_tables": 2, "schema": "none"}, "preprocess.noise_tables: prompts show no schema"),
        ({"noise_tables": 2}, "preprocess.noise_tables: all training questions are about shop"),
    ],
)
def test_noise_that_is_not_possible_is_an_error(
    shop: Path, tokenizer: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        preprocess(settings(shop, tokenizer, **values), tmp_path / "out")
