"""Answers with their names bound to the schema, next to the answers as they are."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.evaluate.evaluate import evaluate, evaluate_predictions
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.evaluate.statistics import mcnemar_p_value, wilson_interval
from chatmetrics.components.nl2sql.binding.binder import bind_names
from chatmetrics.components.nl2sql.descriptions import Descriptions, write_descriptions
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sqlite_compiler import unresolved_name
from tests.gguf_files import answering_gguf

SPIDER, PREDICTIONS = (os.environ.get(f"CHATMETRICS_{name}_DIR", "") for name in ("SPIDER", "PREDICTIONS"))
GOLD = "SELECT name FROM hotel"
# Predictions for it, and the kind of repair; the third is repaired and still wrong.
ANSWERS = [
    ("SELECT name FROM hotel", ""),
    ("SELECT names FROM hotel", "near name"),
    ("SELECT ratings FROM hotel", "near name"),
    ("SELECT h.name FROM hotel", "alias"),
    ("SELECT stars FROM hotel", ""),
    ("SELECT FROM", ""),
]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    records = [
        {"db_id": "hotel", "gold": GOLD, "predicted": sql, "question": str(n)} for n, (sql, _) in enumerate(ANSWERS)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def scored(file: Path, databases: Path, output: Path, **settings: object) -> tuple[Report, list[dict[str, Any]]]:
    chosen = EvaluateSettings.model_validate(settings)
    report = evaluate_predictions(chosen, {"it": file}, str(databases), output)
    return report, read_lines(output / "items.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_report_has_both_accuracies_a_paired_test_and_the_precision_of_each_kind(
    answers: Path, databases: Path, tmp_path: Path
) -> None:
    report, items = scored(answers, databases, tmp_path / "report")
    score = report.systems["it"]
    assert (score.strict.correct, score.official.correct, report.bind_names) == (1, 1, False)
    binding = score.binding
    assert (binding.raw_strict, binding.raw_official) == (score.strict, score.official)
    assert (binding.strict.correct, binding.official.correct, binding.strict.total) == (3, 3, 6)
    assert binding.strict.interval == wilson_interval(3, 6)
    assert (binding.comparison.only_first, binding.comparison.only_second) == (0, 2)
    assert binding.comparison.p_value == mcnemar_p_value(0, 2)
    assert {kind: (found.correct, found.total) for kind, found in binding.kinds.items()} == {
        "alias": (1, 1),
        "near name": (1, 2),
    }
    assert (binding.repaired.correct, binding.repaired.total) == (2, 3)
    assert "strict 16.7%" in report.headline and "(as answered; strict 50.0% with names bound)" in report.headline
    assert json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))["systems"]["it"]["binding"]["kinds"]
    for name in ("report.html", "report.md"):
        page = (tmp_path / "report" / name).read_text("utf-8").lower()
        assert [
            text for text in ("names bound to the schema", "near name", "1 of 2", "2 of 3") if text not in page
        ] == []
    assert "names is name" in (tmp_path / "report" / "report.html").read_text("utf-8")
    assert [item["predicted"] for item in items] == [sql for sql, _ in ANSWERS]
    assert [bool(item.get("bound")) for item in items] == [bool(kind) for _, kind in ANSWERS]
    assert items[1]["bound"] == GOLD
    assert items[1]["repairs"] == [{"kind": "near_name", "message": "names is name"}]
    assert (items[1]["strict"], items[1]["bound_strict"], items[1]["failure"]) == (
        False,
        True,
        "unknown table or column",
    )
    assert (items[2]["bound_strict"], items[2]["bound_official"]) == (False, False)


def test_bound_answers_count_if_the_setting_says_so(answers: Path, databases: Path, tmp_path: Path) -> None:
    settings = {"gate": 0.5, "bind_names": True}
    report, items = scored(answers, databases, tmp_path / "report", **settings)
    score = report.systems["it"]
    assert (score.strict.correct, score.binding.raw_strict.correct, report.passed) == (3, 1, True)
    assert "strict 50.0%" in report.headline and "(with names bound; strict 16.7% as answered)" in report.headline
    assert score.failures == {"ok": 3, "wrong result": 1, "does not parse": 1, "unknown table or column": 1}
    assert [item["strict"] for item in items] == [True, False, False, False, False, False]
    assert "as answered 16.7 %" in (tmp_path / "report" / "report.html").read_text("utf-8")
    raw, _ = scored(answers, databases, tmp_path / "raw", gate=0.5)
    assert not raw.passed


def test_an_answer_that_runs_is_not_repaired_even_if_the_schema_hides_its_table(tmp_path: Path) -> None:
    """The tables in which a full-text index keeps its data are not in prompts, but a query can use them."""
    path = tmp_path / "databases" / "notes.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIRTUAL TABLE note USING fts5(text)")
        connection.execute("INSERT INTO note VALUES ('a'), ('b')")
        connection.commit()
    sql = "SELECT count(*) FROM note_docsize"
    assert bind_names(sql, Schema.from_sqlite(path))[0].repairs
    file = tmp_path / "it.jsonl"
    file.write_text(json.dumps({"db_id": "notes", "gold": "SELECT count(*) FROM note", "predicted": sql}), "utf-8")
    report, [item] = scored(file, path.parent, tmp_path / "report")
    assert (item["strict"], "bound" in item, report.systems["it"].binding.repaired.total) == (True, False, 0)


def test_without_repairs_the_report_does_not_mention_them(databases: Path, tmp_path: Path) -> None:
    file = tmp_path / "right.jsonl"
    file.write_text(json.dumps({"db_id": "hotel", "gold": GOLD, "predicted": GOLD, "bound": "stale"}), "utf-8")
    report, [item] = scored(file, databases, tmp_path / "report")
    assert "names bound" not in report.headline and report.repair_kinds == []
    assert not item.keys() & {"bound", "repairs", "bound_strict"}
    assert "bound to the schema" not in (tmp_path / "report" / "report.html").read_text("utf-8")


def test_a_student_s_predictions_record_the_bound_query(dataset: Path, tmp_path: Path) -> None:
    student = answering_gguf(tmp_path, ["SELECT", " names", " FROM", " hotel"])
    settings = EvaluateSettings(max_tokens=16, concurrency=2, context_length=512, acceptance_test_questions=0, limit=2)
    evaluate(settings, dataset, "", student, None, tmp_path / "report", None)
    for record in read_lines(tmp_path / "report" / "predictions-student.jsonl"):
        assert (record["predicted"], record["bound"]) == ("SELECT names FROM hotel", "SELECT name FROM hotel")
        assert [repair["kind"] for repair in record["repairs"]] == ["near_name"]
        assert record["completion_tokens"] > 0


def test_foreign_keys_that_only_the_dataset_knows_are_used(dataset: Path, databases: Path, tmp_path: Path) -> None:
    """Spider's tables.json names keys that its database files do not declare."""
    with closing(sqlite3.connect(databases / "hotel" / "hotel.sqlite")) as connection:
        connection.execute("CREATE TABLE room (hotel_name TEXT, beds INT)")
        connection.commit()
    student = answering_gguf(tmp_path, ["SELECT", " rating", ", beds", " FROM", " hotel"])
    settings = EvaluateSettings(max_tokens=16, concurrency=1, context_length=512, acceptance_test_questions=0, limit=1)

    def bound(folder: str) -> str | None:
        evaluate(settings, dataset, "", student, None, tmp_path / folder, None)
        [record] = read_lines(tmp_path / folder / "predictions-student.jsonl")
        return record.get("bound")

    assert bound("without") is None
    keys = (("room", "hotel_name", "hotel", "name"),)
    write_descriptions(dataset, {"hotel": Descriptions(foreign_keys=keys)})
    assert bound("with") == "SELECT rating, room.beds FROM hotel JOIN room ON hotel.name = room.hotel_name"


@pytest.mark.skipif(not (SPIDER and PREDICTIONS), reason="CHATMETRICS_SPIDER_DIR or _PREDICTIONS_DIR is not set")
def test_figures_of_real_answers_agree_with_their_items(tmp_path: Path) -> None:
    """Sixty answers of a distilled model of 1.5B parameters, every second of which does not resolve."""
    records = json.loads((Path(PREDICTIONS) / "distilled_1p5b_q4.json").read_text("utf-8"))
    folder = Path(SPIDER) / "database"
    schemas = {name: Schema.from_sqlite(folder / name / f"{name}.sqlite") for name in {r["db_id"] for r in records}}
    resolves = [not unresolved_name(schemas[record["db_id"]], record["predicted"]) for record in records]
    failing = [record for record, fine in zip(records, resolves, strict=True) if not fine][:30]
    fine = [record for record, fine in zip(records, resolves, strict=True) if fine][:30]
    file = tmp_path / "some.json"
    file.write_text(json.dumps([*failing, *fine]), "utf-8")
    report, items = scored(file, folder, tmp_path / "report")
    assert not any(item["strict"] for item in items[:30])
    assert not any("bound" in item for item in items[30:])
    repaired = [item for item in items if "bound" in item]
    right = sum(item["bound_strict"] for item in repaired)
    binding = report.systems["it"].binding
    assert len(repaired) >= 25 and right >= 10
    assert (binding.repaired.correct, binding.repaired.total) == (right, len(repaired))
    assert binding.strict.correct == binding.raw_strict.correct + right
    assert sum(found.total for found in binding.kinds.values()) == len(repaired)
    assert [item["official"] for item in items] == [record["official"] for record in (*failing, *fine)]
