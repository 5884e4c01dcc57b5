"""The gate, given a report as evaluate writes it: what is published and what is not."""

import hashlib
import json
from pathlib import Path

import pytest
from kfp import dsl

from chatmetrics.components.errors import GateError, InputError, StorageError
from chatmetrics.components.storage.manifest import check_signed, fetch, manifest_bytes, read_manifest, stage
from chatmetrics.pipelines.gate import gate
from tests.storage.keys import key_pair


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report folder with the files that the gate reads, and an acceptance test."""
    folder = tmp_path / "report"
    (folder / "acceptance_test").mkdir(parents=True)
    (folder / "acceptance_test" / "acceptance_test-0123456789ab.json").write_text("questions")
    (folder / "acceptance_test" / "hotel-0123456789ab.sqlite").write_text("rows")
    (folder / "report.html").write_text("<!doctype html>")
    write_scores(folder, passed=True)
    return folder


OWN, COMPARED_WITH_TEACHER = "accuracy 90.0%, the gate is 80.0%", "12.0 points below the teacher"


def write_scores(folder: Path, passed: bool, missed: tuple[str, ...] = ()) -> None:
    thresholds = [{"sentence": sentence, "passed": sentence not in missed} for sentence in (OWN, COMPARED_WITH_TEACHER)]
    scores = {"passed": passed, "gate": 0.8, "gate_split": "", "gate_accuracy": 0.9, "questions": 10}
    scores |= {"gate_teacher": 0.05, "teacher_accuracy": 0.95, "thresholds": thresholds}
    student = {verdict: {"accuracy": 0.9} for verdict in ("strict", "official")}
    (folder / "report.json").write_text(json.dumps({**scores, "systems": {"student": student}}))


@pytest.fixture
def candidate(tmp_path: Path) -> str:
    weights = tmp_path / "hotel.gguf"
    weights.write_bytes(b"weights")
    return stage(str(tmp_path / "models"), "hotel", "1", [weights], {})


def run_gate(report: Path, candidate: str, tmp_path: Path) -> str:
    uri, sha256 = gate.python_func(dsl.Artifact(name="report", uri=str(report)), candidate, str(tmp_path / "run"))
    assert hashlib.sha256(manifest_bytes(uri)).hexdigest() == sha256
    scores = json.loads((tmp_path / "run" / "scores.json").read_bytes())
    assert (scores["manifest_uri"], scores["manifest_sha256"]) == (uri, sha256)
    return str(uri)


def test_a_student_is_published_with_scores_and_acceptance_test(report: Path, candidate: str, tmp_path: Path) -> None:
    uri = run_gate(report, candidate, tmp_path)
    manifest = fetch(uri, tmp_path / "fetched")
    assert manifest.acceptance_test == "acceptance_test-0123456789ab.json"
    assert (tmp_path / "fetched" / manifest.acceptance_test).read_text() == "questions"
    assert (tmp_path / "fetched" / "hotel-0123456789ab.sqlite").read_text() == "rows"
    assert manifest.evaluation is not None and manifest.evaluation["strict"] == 0.9
    scores = json.loads((tmp_path / "run" / "scores.json").read_bytes())
    assert scores["manifest_uri"] == uri
    assert (scores["gate"], scores["gate_teacher"], scores["teacher_accuracy"]) == (0.8, 0.05, 0.95)
    assert run_gate(report, candidate, tmp_path) == uri


def test_the_gate_signs_what_it_publishes_if_it_has_a_key(
    report: Path, candidate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = key_pair(tmp_path / "keys")
    uri = run_gate(report, candidate, tmp_path)
    with pytest.raises(StorageError, match="is not signed"):
        check_signed(uri, "", public)
    monkeypatch.setenv("CHATMETRICS_SIGNING_KEY", f"{private}\n")
    assert run_gate(report, candidate, tmp_path) == uri
    check_signed(uri, "", public)
    monkeypatch.setenv("CHATMETRICS_SIGNING_KEY", public)
    with pytest.raises(InputError, match="CHATMETRICS_SIGNING_KEY: not a private Ed25519 key"):
        run_gate(report, candidate, tmp_path)


def test_below_the_gate_nothing_is_signed(
    report: Path, candidate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATMETRICS_SIGNING_KEY", key_pair(tmp_path / "keys")[0])
    write_scores(report, passed=False, missed=(OWN,))
    with pytest.raises(GateError):
        run_gate(report, candidate, tmp_path)
    assert not list((tmp_path / "models").rglob("*.sig"))


def test_a_report_without_acceptance_test_is_published_too(report: Path, candidate: str, tmp_path: Path) -> None:
    for path in (report / "acceptance_test").iterdir():
        path.unlink()
    (report / "acceptance_test").rmdir()
    assert read_manifest(run_gate(report, candidate, tmp_path)).acceptance_test == ""


def test_below_the_gate_nothing_is_published(report: Path, candidate: str, tmp_path: Path) -> None:
    write_scores(report, passed=False, missed=(OWN, COMPARED_WITH_TEACHER))
    with pytest.raises(
        GateError, match=f"gate: {OWN} and {COMPARED_WITH_TEACHER}; it is not published, see .*report.html"
    ):
        run_gate(report, candidate, tmp_path)
    assert sorted(path.name for path in (tmp_path / "models" / "hotel" / "1").iterdir()) == [
        "candidate.json",
        "hotel.gguf",
    ]


def test_only_missed_bars_are_named(report: Path, candidate: str, tmp_path: Path) -> None:
    write_scores(report, passed=False, missed=(COMPARED_WITH_TEACHER,))
    with pytest.raises(GateError, match=f"below the gate: {COMPARED_WITH_TEACHER}; it is not published"):
        run_gate(report, candidate, tmp_path)
    assert json.loads((tmp_path / "run" / "scores.json").read_bytes())["passed"] is False
