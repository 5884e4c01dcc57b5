"""The KFP component: its outputs, and the files that KFP's UI and cache need."""

import json
from pathlib import Path

from kfp import dsl

from chatmetrics.components.evaluate.component import evaluate
from chatmetrics.components.storage.manifest import publish, stage
from chatmetrics.components.storage.mirror import push_folder
from tests.gguf_files import answering_gguf


def artifact(kind: type[dsl.Artifact], path: Path) -> dsl.Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    return kind(name=path.name, uri=str(path))


def test_outputs_and_artifacts(dataset: Path, tmp_path: Path) -> None:
    published = tmp_path / "models"
    student = answering_gguf(tmp_path / "student", ["SELECT", " count", "(*)", " FROM", " hotel"])
    base = answering_gguf(tmp_path / "base", ["SELECT", " 7"])
    metrics = artifact(dsl.Metrics, tmp_path / "out" / "metrics")
    outputs = evaluate.python_func(
        dataset=artifact(dsl.Dataset, dataset),
        adapter=artifact(dsl.Artifact, tmp_path / "adapter without a curve"),
        student_uri=publish(stage(str(published), "student", "1", [student], {})),
        base_uri=publish(stage(str(published), "base", "1", [base], {})),
        databases="",
        settings={"gate": 0.6, "max_tokens": 16, "concurrency": 1, "context_length": 512},
        report=artifact(dsl.Artifact, tmp_path / "out" / "report"),
        page=artifact(dsl.HTML, tmp_path / "out" / "page"),
        summary=artifact(dsl.Markdown, tmp_path / "out" / "summary"),
        metrics=metrics,
    )

    assert outputs == (False, 0.5, 0.0)
    assert metrics.metadata == {
        "student accuracy": 50.0,
        "student official accuracy": 50.0,
        "base accuracy": 0.0,
        "base official accuracy": 0.0,
    }
    assert json.loads((tmp_path / "out" / "metrics").read_text(encoding="utf-8"))["passed"] is False
    assert (tmp_path / "out" / "page").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (tmp_path / "out" / "summary").read_text(encoding="utf-8").startswith("# answering")
    assert (tmp_path / "out" / "report" / "predictions-base.jsonl").is_file()


def test_databases_in_a_bucket(dataset: Path, databases: Path, bucket: str, tmp_path: Path) -> None:
    student = answering_gguf(tmp_path / "student", ["SELECT", " count", "(*)", " FROM", " hotel"])
    outputs = evaluate.python_func(
        dataset=artifact(dsl.Dataset, dataset),
        adapter=artifact(dsl.Artifact, tmp_path / "no adapter"),
        student_uri=stage(str(tmp_path / "models"), "student", "1", [student], {}),
        base_uri="",
        databases=push_folder(databases, f"s3://{bucket}/databases"),
        settings={"max_tokens": 16, "concurrency": 1, "context_length": 512},
        report=artifact(dsl.Artifact, tmp_path / "out" / "report"),
        page=artifact(dsl.HTML, tmp_path / "out" / "page"),
        summary=artifact(dsl.Markdown, tmp_path / "out" / "summary"),
        metrics=artifact(dsl.Metrics, tmp_path / "out" / "metrics"),
    )
    assert outputs == (True, 0.5, 0.0)
