"""Held-out sets are scored next to the dev questions, and change none of their numbers."""

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example, write_examples
from tests.gguf_files import answering_gguf

QUICK = EvaluateSettings(max_tokens=16, concurrency=2, context_length=512, acceptance_test_questions=3)

Evaluated = Callable[..., Report]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student that counts the hotels, and a base that answers nothing useful."""
    student = answering_gguf(tmp_path_factory.mktemp("student"), ["SELECT", " count", "(*)", " FROM", " hotel"])
    return student, answering_gguf(tmp_path_factory.mktemp("base"), ["SELECT", " 0"])


@pytest.fixture
def evaluated(dataset: Path, models: tuple[Path, Path], tmp_path: Path) -> Evaluated:
    def run(output: str = "report", **settings: object) -> Report:
        chosen = EvaluateSettings.model_validate(QUICK.model_dump() | settings)
        return evaluate(chosen, dataset, "", *models, tmp_path / output, None)

    return run


def add_sets(dataset: Path, examples: Sequence[Example]) -> None:
    """Two sets: one on a hotel of its own, and one that also has questions about a database that does not exist."""
    other = dataset.parent / "other" / "inn.sqlite"
    other.parent.mkdir()
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE hotel (name TEXT)")
        connection.execute("INSERT INTO hotel VALUES ('Inn')")
    question = examples[1]
    dk = [replace(question, id=f"dk/{n}", db_id="inn", split="dk", question=f"{n}?") for n in range(3)]
    dk[2] = replace(dk[2], sql="SELECT name FROM hotel", difficulty="challenging")
    dk[0] = replace(dk[0], difficulty="simple")
    syn = [replace(question, id="syn/0", split="syn"), replace(question, id="syn/1", split="syn", db_id="gone")]
    write_examples(dataset / "held_out.jsonl", [*dk, *syn])
    card = json.loads((dataset / "dataset_card.json").read_bytes())
    dropped = [{"split": "syn"}, {"split": "unseen value"}]
    card |= {"held_out_databases": {"inn": str(other.parent)}, "held_out": {"dk": "a", "syn": "b"}, "dropped": dropped}
    (dataset / "dataset_card.json").write_text(json.dumps(card), encoding="utf-8")


def test_each_set_has_its_scores_and_paired_differences(
    evaluated: Evaluated, dataset: Path, examples: list[Example], tmp_path: Path
) -> None:
    plain = evaluated("plain")
    add_sets(dataset, examples)
    report = evaluated()
    dk, syn = report.held_out["dk"], report.held_out["syn"]
    assert {name: (found.correct, found.total) for name, found in dk.strict.items()} == {
        "student": (2, 3),
        "base": (0, 3),
    }
    assert dk.official == {name: found for name, found in dk.official.items() if found.total == 3}
    assert [(level, found["student"].correct) for level, found in dk.difficulty.items()] == [
        ("simple", 1),
        ("challenging", 0),
    ]
    assert syn.difficulty == {}
    (difference,) = dk.comparisons
    assert (difference.first, difference.second, difference.only_second, difference.questions) == (
        "base",
        "student",
        2,
        3,
    )
    assert syn.strict["student"].total == 1
    (coverage,) = syn.coverages
    assert coverage.total == 3
    assert sum(coverage.not_scored.values()) == 2  # one has no database, and preprocess dropped one
    assert "held out, dk: student 66.7% of 3, base 0.0% of 3" in report.headline

    # Nothing else knows these questions.
    assert report.missing_databases == plain.missing_databases | {"gone": 1}
    assert report.questions == plain.questions
    for name, score in plain.systems.items():
        assert report.systems[name].strict == score.strict
        assert report.systems[name].groups == score.groups
    assert report.comparisons == plain.comparisons
    assert report.acceptance_test == plain.acceptance_test
    (database,) = (tmp_path / "report/acceptance_test").glob("*.sqlite")
    assert database.name.startswith("hotel-")
    assert sum(coverage.total for coverage in report.coverages) == sum(c.total for c in plain.coverages) + 1

    markdown = (tmp_path / "report/report.md").read_text("utf-8")
    assert "| dk | student | 66.7 % of 3 |" in markdown
    assert "| dk | student minus base | 3 | +66.7 |" in markdown
    page = (tmp_path / "report/report.html").read_text("utf-8")
    assert "<h2>Held-out sets" in page and "dk by difficulty" in page
    assert "- dk, challenging: student 0.0 % of 1 (" in markdown
    items = [json.loads(line) for line in (tmp_path / "report/items.jsonl").read_text("utf-8").splitlines()]
    assert sum(item["split"] == "dk" for item in items) == 6
    assert "Held-out sets" not in (tmp_path / "plain/report.html").read_text("utf-8")


def test_a_set_whose_questions_are_not_scored_is_named(
    evaluated: Evaluated, dataset: Path, examples: list[Example]
) -> None:
    broken = replace(examples[1], id="bad/0", split="bad", sql="SELECT stars FROM hotel")
    write_examples(dataset / "held_out.jsonl", [broken])
    headline = evaluated().headline
    assert "; held out, bad: no question could be scored; " in headline
    assert headline.endswith("held-out set bad: 1 of 1 questions not scored: the gold query fails")


def test_a_limit_and_a_sample_are_drawn_from_each_set(
    evaluated: Evaluated, dataset: Path, examples: list[Example]
) -> None:
    add_sets(dataset, examples)
    report = evaluated(limit=2, base_limit=1)
    assert [found.strict["student"].total for found in report.held_out.values()] == [2, 1]
    assert [found.strict["base"].total for found in report.held_out.values()] == [1, 1]
    assert report.systems["student"].strict.total == 2
    # A set with fewer questions of the kind is asked all of them.
    sampled = evaluated(sample="all:3")
    assert [found.strict["student"].total for found in sampled.held_out.values()] == [3, 1]


def test_a_set_is_not_a_split_of_the_gate(evaluated: Evaluated, dataset: Path, examples: list[Example]) -> None:
    add_sets(dataset, examples)
    with pytest.raises(InputError, match="gate_split: the split 'dk' has no questions; choose one of unseen value, un"):
        evaluated(gate=0.1, gate_split="dk")
    assert evaluated(gate=0.5).gate_accuracy == 0.5  # of the dev questions


def test_training_questions_are_asked_without_the_sets(
    evaluated: Evaluated, dataset: Path, examples: list[Example]
) -> None:
    add_sets(dataset, examples)
    write_examples(dataset / "train.jsonl", [replace(example, split="train") for example in examples])
    assert evaluated(questions="train").held_out == {}
