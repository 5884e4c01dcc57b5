"""`chatmetrics evaluate --predictions`: reports on prediction files, including hostile predictions."""

import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate_predictions
from chatmetrics.components.evaluate.prediction_files import read_predictions
from chatmetrics.components.evaluate.settings import EvaluateSettings
from tests.command import finished_process
from tests.nl2sql.picture.drawn import Drawing

GOLD = "SELECT name FROM hotel"
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
# The possible failure modes of each prediction.
HOSTILE = {
    GOLD: {"ok"},
    "DROP TABLE hotel": {"refused"},
    "WITH x AS (SELECT 1) DELETE FROM hotel RETURNING name": {"refused"},
    "ATTACH 'HERE/new.db' AS x": {"refused"},
    "PRAGMA writable_schema = 1": {"refused"},
    "SELECT load_extension('HERE/x.so')": {"refused"},
    "VACUUM INTO 'HERE/copy.db'": {"refused"},
    f"{ENDLESS} SELECT count(*) FROM n": {"timed out"},
    "SELECT count(*) FROM many a, many b, many c, many d": {"timed out"},
    "SELECT * FROM many a, many b, many c": {"over memory"},
    "SELECT randomblob(1e9)": {"over memory"},
    "SELECT zeroblob(2000000000)": {"over memory"},
    "SELECT group_concat(printf('%.1000c', 'a')) FROM many a, many b, many c": {"over memory", "timed out"},
    "SELECT " + "(" * 50_000 + "1" + ")" * 50_000: {"does not parse"},
    "SELECT " + "(SELECT " * 3_000 + "1" + ")" * 3_000: {"does not parse"},
    "SELECT DISTINCT " + "-" * 100_001 + "1": {"no SQL given", "does not parse"},
    "SELECT 1\0; DROP TABLE hotel": {"does not parse"},
    "SELECT '" + "x" * 3_000_000 + "'": {"does not parse"},
    "SELECT DISTINCT '" + "x" * 900_000 + "'": {"wrong result"},
    "SELECT name FROM hotel; DROP TABLE hotel": {"refused"},
    "SELECT stars FROM hotel": {"unknown table or column"},
    "SELECT year(name) FROM hotel": {"other execution error"},
    "SELECT 7": {"wrong result"},
    "I cannot answer that.": {"does not parse"},
    "": {"no SQL given"},
}
TIMEOUT = 2.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "databases" / "hotel" / "hotel.sqlite"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE hotel (name TEXT)")
        connection.executemany("INSERT INTO hotel VALUES (?)", [("和平饭店",), ("如家",)])
        connection.execute("CREATE TABLE many (id INTEGER)")
        connection.executemany("INSERT INTO many VALUES (?)", ((number,) for number in range(1000)))
    connection.close()
    return tmp_path


def write_json(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def make_records(predictions: list[str | None], **more: Any) -> list[dict[str, Any]]:
    return [{"db_id": "hotel", "gold": GOLD, "predicted": predicted, **more} for predicted in predictions]


def read_items(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "items.jsonl").read_text(encoding="utf-8").splitlines()]


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def run(folder: Path, files: dict[str, Path], **settings: Any) -> Path:
    output = folder / "out" / "report"
    evaluate_predictions(
        EvaluateSettings.model_validate({"query_seconds": TIMEOUT, **settings}),
        files,
        str(folder / "databases"),
        output,
    )
    return output


def test_the_report_draws_the_schema_of_each_database(folder: Path) -> None:
    output = run(folder, {"mine": write_json(folder / "mine.json", make_records([GOLD]))})
    page = (output / "report.html").read_text("utf-8")
    svg = page[page.index("<svg xmlns") : page.rindex("</svg>") + len("</svg>")]
    drawing = Drawing.read(svg)
    drawing.check()
    assert {box.title for box in drawing.boxes} == {"hotel", "many"} and page.count("<svg xmlns") == 1


def test_hostile_predictions_get_their_verdict_and_change_nothing(folder: Path) -> None:
    hostile = [sql.replace("HERE", str(folder / "databases")) for sql in HOSTILE]
    file = write_json(folder / "hostile.json", make_records([*hostile, None, GOLD]))
    before = file_hashes(folder)
    started = time.monotonic()

    output = run(folder, {"hostile": file})

    assert time.monotonic() - started < (TIMEOUT + 3) * len(hostile)
    found = read_items(output)
    assert {path: value for path, value in file_hashes(folder).items() if "/out" not in path} == before
    expected = [*HOSTILE.values(), {"no SQL given"}, {"ok"}]
    assert [
        (item["failure"], modes) for item, modes in zip(found, expected, strict=True) if item["failure"] not in modes
    ] == []
    assert [item["strict"] for item in found] == [item["failure"] == "ok" for item in found]
    assert found[-1]["official"] and (output / "report.html").is_file()


def test_items_keep_their_fields_and_order_and_the_report_is_complete(folder: Path) -> None:
    asked = make_records([GOLD, "SELECT 1", GOLD], note="kept", official="overwritten")
    asked[1] |= {"db_id": "motel", "id": 17}
    asked[2]["gold"] = "SELECT broken FROM hotel"
    output = run(folder, {"mine": write_json(folder / "mine.json", asked)})
    found = read_items(output)

    assert [item["predicted"] for item in found] == [GOLD, "SELECT 1", GOLD]
    assert all(item["note"] == "kept" for item in found) and found[1]["id"] == 17
    assert [(item["official"], item["strict"]) for item in found] == [(True, True), (False, False), (False, False)]
    assert [item["reasons"] for item in found] == [[], ["the database is missing"], ["the gold query fails"]]
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert (report["questions"], report["gold_failures"], report["missing_databases"]) == (2, 1, {"motel": 1})
    assert {path.name for path in output.iterdir()} == {"report.json", "report.html", "report.md", "items.jsonl"}


def test_several_systems_in_any_order_of_their_questions(folder: Path) -> None:
    first = write_json(folder / "first.json", make_records([GOLD, "SELECT 1"], question="a"))
    second = folder / "second.jsonl"
    lines = map(json.dumps, make_records(["SELECT 2", GOLD], question="a"))
    second.write_text("\n".join(lines), "utf-8")
    output = run(folder, {"first": first, "second": second})
    assert [(item["system"], item["predicted"]) for item in read_items(output)] == [
        ("first", GOLD),
        ("first", "SELECT 1"),
        ("second", "SELECT 2"),
        ("second", GOLD),
    ]
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["comparisons"][0]["questions"] == 2


def test_a_sample_has_the_same_questions_for_every_system(folder: Path) -> None:
    files = {}
    for name in ("a", "b"):
        asked = [record | {"question": str(number)} for number, record in enumerate(make_records([GOLD] * 30))]
        files[name] = write_json(folder / f"{name}.json", asked if name == "a" else asked[::-1])
    output = run(folder, files, sample="all:5", seed=1)
    found = read_items(output)
    assert sorted(item["question"] for item in found[:5]) == sorted(item["question"] for item in found[5:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no predictions"),
        ("[{]", "not JSON"),
        ('{"db_id": "hotel", "gold": "SELECT 1"}', "bad.json:1: the field 'predicted' is missing"),
        ('[{"db_id": 5, "gold": "", "predicted": ""}]', r"bad.json\[0\]: the field 'db_id' is not a string but int"),
        ('{"db_id": "h", "gold": "", "predicted": ""}\n[1]', "bad.json:2: not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"db_id": "h", "gold": "", "predicted": "", "latency": "x", "completion_tokens": 1}', "must be numbers"),
    ],
)
def test_an_unusable_file_is_an_error_that_names_it(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / "bad.json")


def test_the_command_prints_its_headline_last(folder: Path) -> None:
    file = write_json(folder / "mine.json", make_records([GOLD, "SELECT 1"]))
    places = ["--databases", folder / "databases", "--output", folder / "out"]
    done = finished_process("evaluate", "--predictions", f"my system={file}", *places)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ("my system: strict 50.0% [9.5%, 90.5%], official 50.0% of 2")
