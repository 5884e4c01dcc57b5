"""A whole run about a database on a server: training, evaluation and an answer, in its dialect."""

import json
import os
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.preprocess.hotel import generate
from tests.nl2sql.hotels import INSTALLED, copied
from tests.pipelines.runs import run_recipe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("dialect", "title"),
    [
        ("postgresql", "PostgreSQL"),
        pytest.param("mariadb", "MySQL", marks=pytest.mark.exhaustive),
        pytest.param("duckdb", "DuckDB", marks=pytest.mark.exhaustive),
    ],
)
def test_a_student_learns_the_hotel_business_in_the_dialect_of_its_server(
    tiny_recipe: Path, tmp_path: Path, dialect: str, title: str
) -> None:
    """The demo's data and its questions in Chinese and English, from translated queries to a scored student."""
    if not INSTALLED[dialect]:
        pytest.skip(f"{dialect} is not installed")
    generate(tmp_path / "demo", 42)
    (tmp_path / "server").mkdir(mode=0o755)
    work = tmp_path / "runs"
    with copied(next((tmp_path / "demo").rglob("*.sqlite")), dialect, tmp_path / "server") as address:
        run = run_recipe(
            tiny_recipe,
            work,
            *("preprocess.format=hotel", "preprocess.limit=24", "preprocess.cutoff_length=768"),
            f"preprocess.translate_to={address}",
            *("train.cutoff_length=768", "convert.context_length=1024", "evaluate.context_length=1024"),
            *("distill.base_url=scripted", "distill.samples=2", "distill.gold=never"),
            *("train.max_steps=20", "train.early_stopping=accuracy", "evaluate.score_base=false"),
        )
        assert run.status == 0, run.error
        report = next(Path(line.removeprefix("report: ")) for line in run.lines if line.startswith("report: "))
        found = json.loads(report.with_name("report.json").read_bytes())
        student = found["systems"]["student"]
        assert 20 <= student["strict"]["total"] <= 24  # those whose translation is verified, all scored on the server
        [trained, *_] = work.glob("artifacts/**/distillation.json")
        examples = read_examples(trained.with_name("train.jsonl"))
        assert examples and all(f"into a {title} query" in example.instruction for example in examples)
        assert any(example.question.isascii() for example in examples)
        assert any(not example.question.isascii() for example in examples)
        with open_databases(address, 10) as opened:
            results = opened.execute("hotel", [example.sql for example in examples])
        assert {result.failure for result in results} == {FailureMode.OK}
        manifest = next(line.removeprefix("model:  ") for line in run.lines if line.startswith("model:  "))
        published = Path(manifest.removeprefix("file://"))
        test = published.parent / json.loads(published.read_bytes())["acceptance_test"]
        assert "rating" in json.loads(test.read_bytes())["schemas"]["hotel"]["tables"]["hotels"]
    for path in work.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".md", ".html", ".log"):
            assert os.environ.get("PGPASSWORD", "no password") not in path.read_text(errors="replace")
