"""A whole run with a teacher and two rounds on this machine. A minute or two on two cores."""

import json
from pathlib import Path

import pytest

from chatmetrics.components.distill.scripted.server import scripted_teacher
from chatmetrics.components.nl2sql.example import write_examples
from tests.distill.shop import question
from tests.pipelines.runs import FinishedRun, run_recipe

pytestmark = pytest.mark.slow

TEACHER = (
    "distill.base_url=scripted",
    "distill.samples=2",
    "distill.rounds=2",
    "distill.sampled_answers=1",
    "distill.gold=never",
    "train.max_steps=20",
    "evaluate.score_base=false",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rounds") / "runs"


@pytest.fixture(scope="module")
def distilled_run(tiny_recipe: Path, work: Path) -> FinishedRun:
    return run_recipe(tiny_recipe, work, *TEACHER)


def distillations(work: Path) -> list[dict]:  # type: ignore[type-arg]
    """Content of distillation.json of each round, in order."""
    found = [json.loads(path.read_bytes()) for path in work.glob("artifacts/**/distillation.json")]
    return sorted(found, key=lambda distillation: distillation["round"])


def test_each_round_trains_a_student_and_asks_again_where_it_fails(distilled_run: FinishedRun, work: Path) -> None:
    assert distilled_run.status == 0, distilled_run.error
    both = ("distill", "train", "merge", "convert student", "evaluate")
    steps = [f"{step}{round}" for step in both for round in (" round 1", "")]
    assert [distilled_run.state_of(step) for step in steps] == ["done"] * 10
    first, second = distillations(work)
    assert (first["asked"], first["counts"]["samples"]) == (24, 48)
    assert second["counts"]["samples"] == 48 + 2 * second["asked"]
    assert second["asked"] >= 24 - first["examples"]["teacher"]


def test_the_report_compares_the_student_with_the_teacher(distilled_run: FinishedRun, work: Path) -> None:
    report = next(Path(line.removeprefix("report: ")) for line in distilled_run.lines if line.startswith("report: "))
    assert {"student", "teacher"} <= set(json.loads(report.with_name("report.json").read_bytes())["systems"])
    assert any(", teacher " in line for line in distilled_run.lines)


def test_a_missed_gate_does_not_ask_or_train_again(distilled_run: FinishedRun, work: Path, tiny_recipe: Path) -> None:
    ledger = next(work.glob("teacher/tiny/requests.jsonl"))
    before = ledger.read_bytes()
    below = run_recipe(tiny_recipe, work, *TEACHER, "evaluate.gate_teacher=0.05")
    assert {below.state_of(step) for step in ("distill round 1", "distill", "train round 1", "train")} == {"cached"}
    assert ledger.read_bytes() == before
    assert (below.status, below.state_of("evaluate"), below.state_of("gate")) == (4, "done", "failed")
    assert "below the teacher" in below.error and "at most 5.0 below are allowed" in below.error
    assert any(line.strip().startswith("gate missed: ") for line in below.lines)


@pytest.mark.exhaustive
def test_a_database_without_questions_is_enough(tiny_recipe: Path, tmp_path: Path) -> None:
    databases, script = tiny_recipe.parent / "questions" / "databases", tmp_path / "script.jsonl"
    queries = [f"SELECT price FROM item WHERE name = 'n{number}'" for number in range(30)]
    asked = [question(sql, f"q{number}", words=f"What does n{number} cost?") for number, sql in enumerate(queries)]
    write_examples(script, asked)
    with scripted_teacher([script], 0.2) as endpoint:
        started = run_recipe(
            tiny_recipe,
            tmp_path / "runs",
            *("preprocess.format=none", f"preprocess.databases={databases}"),
            *(f"distill.base_url={endpoint}", "distill.model=any", "distill.samples=2"),
            "distill.synthesis={questions_per_database: 20, query_types: [single table], max_similarity: 1.0, "
            "dev_fraction: 0.3}",
            *("train.max_steps=20", "evaluate.score_base=false"),
        )
    assert started.status == 0, started.error
    [distillation] = distillations(tmp_path / "runs")
    coverage = distillation["coverage"]["shop"]
    # A wrong answer of this teacher returns no rows and is discarded; the teacher is asked again a few times.
    assert coverage["wanted"] == 20 and 15 <= coverage["questions"] <= 20
    assert 5 < distillation["examples"]["synthesized"] == sum(distillation["examples"].values()) <= 20
    assert any(line.strip().startswith("synthesized: ") for line in started.lines)


@pytest.mark.exhaustive
def test_a_student_teaches_itself(tiny_recipe: Path, tmp_path: Path) -> None:
    itself = ("distill.base_url=self", "distill.sampled_answers=1", "distill.round_questions=6")
    run = run_recipe(tiny_recipe, tmp_path / "runs", *itself, "train.max_steps=40", "evaluate.score_base=false")
    assert run.status == 0, run.error
    first = [f"{step} round 1" for step in ("train", "merge", "convert student", "evaluate")]
    steps = [*first, "distill", "train", "merge", "convert student", "evaluate", "gate"]
    assert [run.state_of(step) for step in steps] == ["done"] * len(steps)
    assert not any(line.startswith("distill round 1") for line in run.lines)
    [distillation] = distillations(tmp_path / "runs")
    assert (distillation["teacher"], distillation["round"], distillation["asked"]) == ("self", 2, 6)
    assert distillation["counts"]["samples"] == 12
