"""Answers restricted by a grammar to the schema's names."""

import json
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate, evaluate_endpoint, evaluate_predictions
from chatmetrics.components.evaluate.settings import EvaluateSettings
from tests.gguf_files import answering_gguf

SETTINGS = EvaluateSettings(max_tokens=16, concurrency=2, context_length=1024, limit=2, gate=0.9, grammar="names")


def test_a_student_writes_no_other_names(dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = answering_gguf(tmp_path, ["SELECT", " zzz", " FROM", " hotel"])
    for name, grammar in (("free", "none"), ("restricted", "names")):
        settings = SETTINGS.model_copy(update={"grammar": grammar, "sampled_answers": 1})
        report = evaluate(settings, dataset, "", student, None, tmp_path / name, None)
        items = [json.loads(line) for line in (tmp_path / name / "items.jsonl").read_text("utf-8").splitlines()]
        answers = [answer for item in items for answer in (item["predicted"], *item["sampled_answers"])]
        assert all(("zzz" in answer) is (grammar == "none") for answer in answers), answers
        assert (report.gate == 0) is (grammar == "names")
        assert (report.acceptance_test is None) is (grammar == "names")
        assert ("only the schema's names" in report.headline) is (grammar == "names")
    assert "the served student has no grammar" in capfd.readouterr().err


def test_a_restricted_answer_is_not_taken_from_the_log_of_a_free_one(dataset: Path, tmp_path: Path) -> None:
    student = answering_gguf(tmp_path, ["SELECT", " zzz", " FROM", " hotel"])
    answers = str(tmp_path / "answers")
    for grammar, count in (("none", 2), ("names", 0)):
        settings = SETTINGS.model_copy(update={"grammar": grammar})
        evaluate(settings, dataset, "", student, None, tmp_path / grammar, None, answers=answers)
        text = (tmp_path / grammar / "predictions-student.jsonl").read_text("utf-8")
        assert text.count("zzz") == count


def test_a_remote_model_takes_no_grammar(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluate.grammar need a student as a GGUF file: name one with --student"):
        evaluate_endpoint(SETTINGS, dataset, "", "http://127.0.0.1:9/v1", "m", tmp_path / "report")


def test_existing_answers_are_not_called_restricted(databases: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"gate": 0.0})
    predictions = tmp_path / "predictions.jsonl"
    record = {"id": "1", "db_id": "hotel", "question": "?", "gold": "SELECT name FROM hotel", "predicted": "SELECT 1"}
    predictions.write_text(json.dumps(record) + "\n", "utf-8")
    report = evaluate_predictions(settings, {"model": predictions}, str(databases), tmp_path / "report")
    assert report.grammar == "none" and "names" not in report.headline
