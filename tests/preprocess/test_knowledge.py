"""What is known about databases: knowledge.yaml, dbt's properties, BIRD's and KaggleDBQA's descriptions."""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import Descriptions, read_descriptions
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.mirror import push_folder

OWN = """
terms:
  dearer: with a higher price
databases:
  shop:
    tables:
      item:
        description: what the shop sells
        columns:
          name: {private: true}
          price:
            description: price in 元
            values: {no: free, 01: cheap}
      sale: one row per sale
    terms: {sold: has a row in sale}
    examples:
    - question: What does tea cost?
      sql: SELECT price FROM item WHERE id = 1
"""
DBT = """
version: 2
models:
- name: Item
  description: |
    Everything that the shop
    sells.

    Owned by sales.
  columns:
  - name: name
    description: what it is called
    meta: {contains_pii: true}
    tests:
    - accepted_values: {values: [tea, 茶]}
  - name: price
    description: "{{ doc('price') }}"
  - name: colour
    description: is not there
sources:
- name: raw
  tables:
  - name: sales
    identifier: sale
    columns:
    - name: day
      data_tests:
      - not_null
      - accepted_values: {arguments: {values: ['2024-05-01']}}
    - name: item_id
      data_tests:
      - relationships: {to: "ref('shop', 'Item', v=2)", field: id}
"""

TERMS = ("active customer", "customer", "活跃客户", "客户", "GMV 总额", "GMV", "box", "c++", " ", "company", "on-time")
TERMS += ("owner's equity", "us", "ga", "new", "activity", "활성고객")
MARKED = "models: [{name: item, columns: [{name: name, meta: {private: true}}]}]"

Build = Callable[..., dict[str, Example]]


@pytest.fixture
def build(shop: Path, tokenizer: Path, tmp_path: Path) -> Build:
    """Preprocess the shop with this knowledge; returns all examples by question."""

    def run(knowledge: str | Path = "", **values: Any) -> dict[str, Example]:
        common = {"source": str(shop), "format": "jsonl", "tokenizer": str(tokenizer), "workers": 1}
        common |= {"knowledge": str(knowledge), "sample_values": 2, "template": "deepseek3"}
        out = tmp_path / "out"
        preprocess(PreprocessSettings.model_validate(common | values), out)
        return {each.question: each for name in ("train", "dev") for each in read_examples(out / f"{name}.jsonl")}

    return run


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_knowledge_file_is_in_prompts(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = build()
    examples = build(write(tmp_path / "knowledge.yaml", OWN))
    example = examples["How many items are there?"]
    assert example.system.splitlines()[:5] == [
        "CREATE TABLE item ( -- what the shop sells",
        "id INTEGER PRIMARY KEY, -- e.g. 1, 2",
        "name TEXT,",
        "price REAL -- price in 元; no = free, 01 = cheap; e.g. 2.5, 3.0",
        ");",
    ]
    assert example.input == plain[example.question].input
    assert "CREATE TABLE sale ( -- one row per sale\n" in example.system
    # The terms that a question names are its evidence, those of the database first.
    sold, dearer = examples["Which items were never sold?"], examples["Items dearer than 100?"]
    assert sold.input == "Which items were never sold?\nEvidence: sold: has a row in sale"
    assert (sold.evidence, dearer.evidence) == ("sold: has a row in sale", "dearer: with a higher price")
    assert examples["What does tea cost?"].split == "train"
    counts = "2 tables, 1 column, 2 terms, 1 private column, 1 example"
    assert f"known about the databases: {counts}" in capsys.readouterr().err
    # M-Schema shows the same.
    shown = build(tmp_path / "knowledge.yaml", schema="m-schema")["How many items are there?"].system
    for text in (
        "# Table: item, what the shop sells",
        "(name:TEXT)",
        "(price:REAL, price in 元; no = free, 01 = cheap,",
    ):
        assert text in shown


def test_without_a_schema_prompts_show_terms(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = build(write(tmp_path / "knowledge.yaml", OWN), schema="none")
    assert examples["Which items were never sold?"].evidence == "sold: has a row in sale"
    assert "note: preprocess: prompts show no schema, so of the knowledge they show only" in capsys.readouterr().err
    known = read_descriptions(tmp_path / "out")["shop"]
    assert known == Descriptions(
        terms={"dearer": "with a higher price", "sold": "has a row in sale"}, private={"item": ("name",)}
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "name: {private",
            "nane: {private",
            "shop: the table item has no column 'nane'; did you mean 'name'?",
        ),
        ("sale: one", "sales: one", "databases.shop: there is no table 'sales'; did you mean 'sale'?"),
        ("\n  shop:", "\n  Shops:", "preprocess.knowledge: databases.Shops: database 'Shops' is missing"),
        ("columns:", "colums:", "knowledge.yaml: databases.shop.tables.item.colums: there is no such key"),
        (
            "{private: true}",
            "{private: true, values: {a: b}}",
            "columns.name: .*is private, so leave out its `val",
        ),
        ("{private: true}", "{private: perhaps}", "item.columns.name.private: .*boolean"),
        ("terms: {sold: has a row in sale}", "terms: {sold: }", "databases.shop.terms.sold: .*at least 1 character"),
        ("      sale: one", "      item: one", "knowledge.yaml:14: 'item' occurs twice"),
        ("sale: one row per sale", "sale: *all", "knowledge.yaml:14: found undefined alias 'all'"),
        ("tables:", "tables: [", "knowledge.yaml:1?[0-9]: "),
        ("sql: SELECT", "query: SELECT", "databases.shop.examples.0.sql: is missing"),
        (OWN, "shop: {}", "knowledge.yaml: has none of the keys databases, terms, sources"),
        (OWN, "- 1", "knowledge.yaml: has none of the keys"),
        ("sale: one row per sale", "sale: {<<: {description: x}}", r"knowledge.yaml:14: merge keys \(<<\) are not"),
        ("sale: one row per sale", 'sale: "a\\ud800"', "tables.sale.*: "),
        ("sold: has a row in sale", "sold: " + "x" * 1001, "terms.sold: .*at most 1000 characters"),
        (OWN, "terms: [a]", "knowledge.yaml: terms: .*dictionary"),
        (OWN, "{" * 5000, "knowledge.yaml: nested too deeply|knowledge.yaml:1:"),
    ],
)
def test_what_is_wrong_in_a_knowledge_file_is_named(
    build: Build, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert OWN.count(old) == 1
    with pytest.raises(InputError, match=message):
        build(write(tmp_path / "knowledge.yaml", OWN.replace(old, new)))
    assert not (tmp_path / "out").exists()


def test_no_knowledge_is_an_error(build: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file or folder; check preprocess\.knowledge"):
        build("nowhere")
    write(tmp_path / "empty/dbt_project.yml", "name: x")
    with pytest.raises(InputError, match=r"empty: contains no knowledge\.yaml, dbt properties or database_description"):
        build(tmp_path / "empty")


def test_examples_of_scored_questions_are_not_trained_on(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "days ON which tea was sold?"  # the dev question in other letters
    held_out = [{"question": "What does tea  cost?", "sql": "SELECT 1", "db_id": "shop"}]
    held = write(tmp_path / "held.json", json.dumps(held_out))
    text = OWN + f"    - question: {asked}\n      sql: SELECT 1\n"
    examples = build(write(tmp_path / "knowledge.yaml", text), held_out={"mine": str(held)})
    assert asked not in examples and "What does tea cost?" not in examples
    printed = capsys.readouterr().err
    assert "1 examples are left out, because the model is scored on their questions; the first is " in printed
    assert "knowledge.yaml: databases.shop.examples, number 2" in printed
    assert "1 training questions are left out, because a held-out set has them" in printed


def test_dbt_s_properties_are_in_prompts(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "dbt/models/schema.yml", DBT)
    write(tmp_path / "dbt/packages.yml", "packages: [x]")
    write(tmp_path / "dbt/dbt_packages/x/schema.yml", "models: [{name: item, description: not ours}]")
    shown = build(tmp_path / "dbt")["How many items are there?"].system
    assert "CREATE TABLE item ( -- Everything that the shop sells.\n" in shown
    assert "name TEXT, -- what it is called\n" in shown  # its values are private
    assert "day DATE, -- one of 2024-05-01; e.g. 2024-05-01\n" in shown
    assert "FOREIGN KEY (item_id) REFERENCES item (id)" in shown
    printed = capsys.readouterr().err
    assert "models[0].columns[1].description is left out: it is a template, which only dbt can render" in printed
    assert "1 names in dbt's properties are not in the database: Item.colour" in printed
    assert "packages.yml is skipped" in printed and "not ours" not in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [{description: x}]", r"schema.yml: models\[0\]: has no name"),
        ("models: {name: x}", "schema.yml: models is no list of mappings"),
        ("models: [{name: item, columns: [x]}]", r"models\[0\]: columns is no list of mappings"),
        ("models: [{name: item, description: [x]}]", r"models\[0\].description: is no text"),
        ("models: [{name: item, columns: [{name: id, tests: x}]}]", r"columns\[0\]: tests is no list"),
        ("models: [{name: item, meta: {private: true}}]", r"models\[0\]: is marked as private as a whole; mark its"),
        (
            "models: [{name: item, columns: [{name: id, meta: {private: maybe}}]}]",
            "private is 'maybe'; write true",
        ),
        (
            "models: [{name: item, columns: [{name: nmae, meta: {private: true}}]}]",
            "dbt marks item.nmae as private, but the table item has no column 'nmae'; did you mean 'name'?",
        ),
    ],
)
def test_what_is_wrong_in_dbt_s_properties_is_named(build: Build, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(write(tmp_path / "schema.yml", text))


def test_bird_s_descriptions_are_found_next_to_a_database(
    build: Build, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = "original_column_name,column_name,column_description,data_format,value_description\n"
    folder = shop / "databases/shop/database_description"
    rows = 'id,,,integer,\nname,,name of the item,text,"tea: a drink\n茶: the same"\nprice,price,,real,\n'
    write(folder / "item.csv", f"\ufeff{header}{rows}")
    (folder / "Sale.csv").write_bytes(f"{header}day,day,jour d'été,,\nhour,,not there,,\n".encode("cp1252"))
    write(folder / "nothing.csv", "a,b\n1,2\n")
    shown = build()["How many items are there?"].system
    assert "name TEXT, -- name of the item; tea: a drink; 茶: the same; e.g. tea, 茶\n" in shown
    assert "price REAL -- e.g. 2.5, 3.0\n" in shown  # it would only repeat the name
    assert "day DATE, -- jour d'été; e.g. 2024-05-01\n" in shown
    printed = capsys.readouterr().err
    assert "Sale.csv is not UTF-8 text, and is read as Windows-1252" in printed
    assert "nothing.csv is left out: it has no column original_column_name" in printed
    assert "1 names in database_description of shop are not in the database: Sale.hour" in printed
    # The recipe's own knowledge wins.
    own = "databases: {shop: {tables: {item: {columns: {name: what it is called}}}}}"
    assert (
        "name TEXT, -- what it is called; tea: a drink; 茶: the same; e.g."
        in build(write(tmp_path / "k.yaml", own))["有多少商品?"].system
    )


def test_kaggle_dbqa_s_descriptions_are_in_prompts(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kaggle"
    (folder / "databases").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "databases/d.sqlite")) as connection:
        connection.execute("CREATE TABLE t (c14 INT, c25 INT)")
    entry = {
        "db_id": "d",
        "table_names_original": ["t"],
        "column_names_original": [[-1, "*"], [0, "c14"], [0, "c25"]],
        "column_names": [[-1, "*"], [0, "c14"], [0, "number of cases"]],
        "column_descriptions": ["*", "number of deaths", ""],
        "column_types": ["text", "number", "number"],
        "primary_keys": [],
        "foreign_keys": [],
    }
    write(folder / "KaggleDBQA_tables.json", json.dumps([entry]))
    write(folder / "tables.json", json.dumps([entry]))
    question = [{"question": "How many?", "query": "SELECT count(*) FROM t", "db_id": "d"}]
    write(folder / "train.json", json.dumps(question))
    settings = PreprocessSettings(source=str(folder), tokenizer=str(tokenizer), workers=1, dev_fraction=0)
    preprocess(settings, tmp_path / "out")
    (example,) = read_examples(tmp_path / "out/train.jsonl")
    assert "c14 INT, -- number of deaths\nc25 INT -- number of cases\n" in example.system


def test_long_descriptions_are_cut(build: Build, tmp_path: Path) -> None:
    text = "databases: {shop: {tables: {item: " + "long words " * 100 + "}}}"
    shown = build(write(tmp_path / "k.yaml", text))["How many items are there?"].system
    line = shown.partition("\n")[0]
    assert line.endswith("…") and 250 < len(line.partition("-- ")[2]) <= 300


def test_knowledge_in_a_bucket_and_about_an_address(build: Build, shop: Path, tmp_path: Path, bucket: str) -> None:
    write(tmp_path / "known/knowledge.yaml", OWN)
    here = build(tmp_path / "known")
    assert build(push_folder(tmp_path / "known", f"s3://{bucket}/x")) == here


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("How many Active  Customers are there?", ["active customer"]),
        ("active-customer", ["active customer"]),
        ("which companies? company's", ["company"]),
        ("on time and on\u2011time", ["on-time"]),
        ("the owner\u2019s equity of", ["owner's equity"]),
        ("GMV\u200b总 额", ["GMV 总额", "GMV"][:1]),
        ("who uses it, gas, news", ["new"]),
        ("활성고객은", ["활성고객"]),
        ("boxs, companys", []),
        ("customers that are active", ["customer"]),
        ("customer and active customer", ["active customer", "customer"]),
        ("inactive customers' scustomer", ["customer"]),
        ("2024年活跃客户的ＧＭＶ是多少", ["活跃客户", "GMV"]),
        ("客户GMV2", ["客户"]),
        ("which boxes?", ["box"]),
        ("C++ costs $5", ["c++"]),
        ("", []),
    ],
)
def test_terms_that_a_question_names(question: str, named: list[str]) -> None:
    known = Descriptions(terms={term: f"<{term}>" for term in TERMS})
    assert known.evidence(question) == "; ".join(f"{term}: <{term}>" for term in named)
    assert known.evidence(question, "given").startswith("given")


def test_thousands_of_terms_take_little_time() -> None:
    known = Descriptions(terms={f"term number {number}": "x" for number in range(5000)})
    begun = time.process_time()
    for number in range(20):
        assert known.evidence(f"How large is term number {number}, asked {number} times?") == f"term number {number}: x"
    assert time.process_time() - begun < 20  # it took a second for each question


def test_evidence_that_is_given_is_not_repeated() -> None:
    known = Descriptions(terms={"active": "status = 2"})
    assert known.evidence("Who is active?", "active: status = 2") == "active: status = 2"


@pytest.mark.parametrize("mark", ["true", "yes", "on", "Y", "1", "'true'"])
@pytest.mark.parametrize(
    "properties",
    [
        "models: [{name: item, columns: [{name: name, meta: {contains_pii: MARK}}]}]",
        "models: [{name: item, columns: [{name: '\"name\"', config: {meta: {private: MARK}}}]}]",
        "models: [{name: item, versions: [{v: 1, columns: [{include: all}, {name: name, meta: {private: MARK}}]}]}]",
        "x: &pii {private: MARK}\nsources: [{name: s, tables: [{name: item, columns: [{name: NAME, meta: *pii}]}]}]",
    ],
)
def test_values_of_a_column_that_dbt_marks_are_not_shown(
    build: Build, tmp_path: Path, properties: str, mark: str
) -> None:
    path = write(tmp_path / "schema.yml", properties.replace("MARK", mark))
    assert "name TEXT,\n" in build(path)["How many items are there?"].system


@pytest.mark.parametrize(
    "files",
    [
        {"knowledge.yaml": "PRIVATE", "schema.yml": "VALUES"},
        {"a.yaml": "PRIVATE", "b.yaml": "OWN VALUES"},
        {
            "a.yaml": "OWN VALUES",
            "schema.yml": "models: [{name: item, columns: [{name: name, meta: {private: true}}]}]",
        },
        {"a.yml": "VALUES", "b.yml": MARKED.replace("item", "Item")},
        {"knowledge.yaml": "PRIVATE", "shop/database_description/item.csv": "BIRD"},
    ],
)
def test_values_are_not_shown_whichever_file_marks_the_column(
    build: Build, tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {
        "PRIVATE": "databases: {shop: {tables: {item: {columns: {Name: {private: true}}}}}}",
        "OWN VALUES": "databases: {shop: {tables: {item: {columns: {name: {values: {tea: a drink}}}}}}}",
        "VALUES": "models: [{name: item, columns: [{name: name, tests: [{accepted_values: {values: [tea]}}]}]}]",
        "BIRD": "original_column_name,value_description\nname,tea: a drink\n",
    }
    for name, text in files.items():
        write(tmp_path / "known" / name, texts.get(text, text))
    examples = build(tmp_path / "known")
    assert "tea" not in examples["How many items are there?"].system
    assert "tea" not in (tmp_path / "out/schema_descriptions.json").read_text()


def test_a_folder_may_contain_other_yaml(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    write(folder / "models/schema.yml", DBT)
    write(folder / "dbt_project.yml", "models: {jaffle: {+materialized: view}}")
    write(folder / ".github/workflows/x.yml", "a: &a 1\nmodels: *a")
    write(folder / "charts/t.yaml", "{{- if .Values.x }}\na: {{ .b }}")
    write(folder / "two.yml", "a: 1\n---\nb: 2")
    (folder / "folder.yaml").mkdir()
    (folder / "gone.yaml").symlink_to("nowhere")
    (folder / "..2024").mkdir()
    write(folder / "..2024/knowledge.yaml", OWN)
    (folder / "knowledge.yaml").symlink_to("..2024/knowledge.yaml")  # as Kubernetes mounts a ConfigMap
    write(folder / "b/knowledge.YML", OWN.replace("What does tea cost?", "What does coffee cost?"))
    examples = build(folder)
    assert {"What does tea cost?", "What does coffee cost?"} <= examples.keys()
    # What is meant for us is read, however it is written, or is an error.
    (folder / "u.yaml").write_bytes("'terms': {tea: leaves}".encode("utf-16"))
    (folder / "v.yaml").write_bytes("\ufeffterms: {coffee: beans}".encode())
    assert build(folder)["What does coffee cost?"].evidence == "coffee: beans"
    assert build(folder)["What does tea cost?"].evidence == "tea: leaves"
    write(folder / "broken.yaml", "databases:\n  shop: [")
    with pytest.raises(InputError, match=r"broken\.yaml:"):
        build(folder)


def test_a_stronger_source_wins_whatever_the_case(build: Build, tmp_path: Path) -> None:
    own = "terms: {gmv: ours}\ndatabases: {shop: {terms: {GMV: the shop's}, tables: {ITEM: {columns: {Price: ours}}}}}"
    dbt = "models: [{name: Item, columns: [{name: PRICE, description: theirs}]}]"
    write(tmp_path / "known/knowledge.yaml", own)
    write(tmp_path / "known/schema.yml", dbt)
    shown = build(tmp_path / "known")["How many items are there?"].system
    assert "price REAL -- ours; e.g." in shown and "theirs" not in shown
    assert read_descriptions(tmp_path / "out")["shop"].evidence("What is the GMV?") == "GMV: the shop's"


def test_a_column_that_is_private_in_one_database_has_the_same_prompts_after_the_model_is_published(
    build: Build, shop: Path, tmp_path: Path
) -> None:
    shutil.copytree(shop / "databases/shop", shop / "databases/inn")
    (shop / "databases/inn/shop.sqlite").rename(shop / "databases/inn/inn.sqlite")
    record = {"question": "How many are in the inn?", "sql": "SELECT count(*) FROM item", "db_id": "inn"}
    with (shop / "train.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    write(tmp_path / "known/knowledge.yaml", "databases: {shop: {tables: {item: {columns: {name: {private: true}}}}}}")
    values = "tests: [{accepted_values: {values: [water]}}]"
    write(tmp_path / "known/schema.yml", f"models: [{{name: item, columns: [{{name: name, {values}}}]}}]")
    trained = build(tmp_path / "known")["How many are in the inn?"].system
    known = read_descriptions(tmp_path / "out")
    assert Schema.from_sqlite(shop / "databases/inn/inn.sqlite", 2, known.get("inn")).render("ddl") == trained


def test_the_dataset_card_has_no_message_with_a_private_value(
    build: Build, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"question": "Which?", "sql": "SELECT json_extract('{}', name) FROM item", "db_id": "shop"}
    with (shop / "train.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")

    def written(knowledge: str | Path) -> str:
        build(knowledge)
        return (tmp_path / "out/dataset_card.json").read_text() + capsys.readouterr().err

    assert "'tea'" in written("")
    hidden = written(write(tmp_path / "knowledge.yaml", OWN))
    assert "'tea'" not in hidden and "not shown, because the database has private columns" in hidden
