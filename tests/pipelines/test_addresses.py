"""A whole run about a database on a server: training, evaluation and an answer, in its dialect."""

import json
import os
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.databases.addresses import freshness
from chatmetrics.components.nl2sql.example import read_examples
from tests.command import finished_process
from tests.pipelines.runs import run_recipe

pytestmark = pytest.mark.slow


def test_a_student_learns_and_answers_in_the_dialect_of_its_server(
    tiny_recipe: Path, addresses: dict[str, str], tmp_path: Path
) -> None:
    if "postgresql" not in addresses:
        pytest.skip("PostgreSQL is not installed")
    questions, work = tmp_path / "questions", tmp_path / "runs"
    questions.mkdir()
    for split, numbers in (("train", range(24)), ("dev", range(24, 30))):
        lines = (
            {
                "question": f"Which name has hotel {n % 3 + 1}, asked {n}?",
                "sql": f"SELECT name::text FROM hotel WHERE id = {n % 3 + 1}",
                "db_id": "hotels",
            }
            for n in numbers
        )
        (questions / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    address = addresses["postgresql"]
    run = run_recipe(
        tiny_recipe,
        work,
        *(f"preprocess.source={questions}", f"preprocess.databases={address}"),
        *("distill.base_url=scripted", "distill.samples=2", "distill.gold=never"),
        *("train.max_steps=20", "train.early_stopping=accuracy", "evaluate.score_base=false"),
    )
    assert run.status == 0, run.error
    report = next(Path(line.removeprefix("report: ")) for line in run.lines if line.startswith("report: "))
    student = json.loads(report.with_name("report.json").read_bytes())["systems"]["student"]
    assert student["strict"]["total"] == 6  # all gold queries ran on the server
    [trained, *_] = work.glob("artifacts/**/distillation.json")
    examples = read_examples(trained.with_name("train.jsonl"))
    assert examples and all("into a PostgreSQL query" in example.instruction for example in examples)
    assert all("::" in example.sql for example in examples)
    manifest = next(line.removeprefix("model:  ") for line in run.lines if line.startswith("model:  "))
    published = Path(manifest.removeprefix("file://"))
    test = published.parent / json.loads(published.read_bytes())["acceptance_test"]
    assert "price" in json.loads(test.read_bytes())["schemas"]["hotels"]["tables"]["hotel"]
    served = finished_process(
        *("evaluate", "--predictions", _predictions(tmp_path), "--databases", address, "--output", tmp_path / "scored"),
        *("--gold", questions / "dev.jsonl"),
    )
    assert served.returncode == 0 and "100.0%" in served.stdout, served.stdout + served.stderr
    assert Path(manifest.removeprefix("file://")).is_file()
    for path in work.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".md", ".html", ".log"):
            assert os.environ.get("PGPASSWORD", "no password") not in path.read_text(errors="replace")


def _predictions(folder: Path) -> Path:
    path = folder / "predictions.sql"
    path.write_text("".join(f"SELECT name FROM hotel WHERE id = {n % 3 + 1}\n" for n in range(24, 30)))
    return path


def test_databases_at_an_address_are_read_again_on_another_day() -> None:
    assert freshness("spider/database") == [] == freshness("s3://bucket/databases")
    assert len(freshness("postgresql+psycopg://reader@host/{db_id}")) == 1
