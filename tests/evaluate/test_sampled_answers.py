"""A student's answers to training questions, and the agreement of its sampled answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate, evaluate_endpoint
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example, write_examples
from tests.gguf_files import answering_gguf

QUICK = EvaluateSettings(max_tokens=16, concurrency=2, context_length=512, acceptance_test_questions=0)


def write_student(folder: Path, answer: str, or_else: str = "") -> Path:
    """Write a model that gives an answer, whose last token is sometimes another one when it is sampled."""
    first, *others = answer.split()
    return answering_gguf(folder, [first, *(f" {word}" for word in others)], or_else=or_else)


def evaluate_items(gguf: Path, dataset: Path, output: Path, **settings: object) -> list[dict[str, Any]]:
    evaluate(QUICK.model_copy(update=settings), dataset, "", gguf, None, output, None)
    return read_items(output)


def read_items(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "items.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize(
    ("answer", "or_else", "other", "agreeing"),
    [
        ("SELECT rating FROM hotel", " hotel LIMIT 1", "SELECT rating FROM hotel LIMIT 1", "SELECT rating FROM hotel"),
        ("SELECT rating FROM hotel", " nowhere", "SELECT rating FROM nowhere", "SELECT rating FROM hotel"),
        ("SELECT stars FROM hotel", " hotel LIMIT 1", "SELECT stars FROM hotel LIMIT 1", None),
    ],
    ids=["another result", "a query that fails", "a greedy query that fails"],
)
def test_agreement_is_the_share_of_sampled_answers_with_the_greedy_result(
    answer: str, or_else: str, other: str, agreeing: str | None, dataset: Path, tmp_path: Path
) -> None:
    student = write_student(tmp_path, answer, or_else)
    items = evaluate_items(student, dataset, tmp_path / "report", sampled_answers=8, limit=2)
    assert len(items) == 2
    for item in items:
        assert item["predicted"] == answer
        assert set(item["sampled_answers"]) == {answer, other} and len(item["sampled_answers"]) == 8
        assert item["agreement"] == item["sampled_answers"].count(agreeing) / 8
        assert 0 < item["sampled_answers"].count(answer) < 8


def test_different_sql_with_the_same_rows_agrees_even_if_the_gold_query_fails(dataset: Path, tmp_path: Path) -> None:
    gguf = write_student(tmp_path, "SELECT rating FROM hotel", " hotel LIMIT 9")
    items = evaluate_items(gguf, dataset, tmp_path / "report", sampled_answers=8)
    assert "the gold query fails" in items[4]["reasons"]
    assert len(set(items[4]["sampled_answers"])) == 2
    assert [item["agreement"] for item in items] == [1.0] * 5


def test_without_sampled_answers_there_is_no_agreement(dataset: Path, tmp_path: Path) -> None:
    items = evaluate_items(write_student(tmp_path, "SELECT 7"), dataset, tmp_path / "report", limit=1)
    assert items and not items[0].keys() & {"agreement", "sampled_answers"}


def test_sampled_answers_of_an_endpoint_are_an_error(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluate\.sampled_answers"):
        evaluate_endpoint(
            QUICK.model_copy(update={"sampled_answers": 1}), dataset, "", "http://127.0.0.1:9", "m", tmp_path
        )


def test_training_questions_that_are_not_asked_are_named(
    dataset: Path, examples: list[Example], tmp_path: Path
) -> None:
    write_examples(dataset / "train.jsonl", [replace(example, split="train") for example in examples])
    items = evaluate_items(
        write_student(tmp_path, "SELECT 7"), dataset, tmp_path / "report", questions="train", limit=2
    )
    lines = (tmp_path / "report" / "not-drawn.jsonl").read_text("utf-8").splitlines()
    asked, not_asked = ({line["question"] for line in group} for group in (items, map(json.loads, lines)))
    assert len(asked) == 2 and not asked & not_asked
    assert asked | not_asked == {example.question for example in examples}


def test_training_questions_are_asked_once_and_without_a_gate(
    dataset: Path, examples: list[Example], tmp_path: Path
) -> None:
    trained = [replace(example, split="train") for example in examples]
    again = replace(trained[0], id="again", output="another sample", reasoning="I count.")
    write_examples(dataset / "train.jsonl", [*trained, again])
    (dataset / "dev.jsonl").unlink()
    (dataset / "teacher.jsonl").write_text("skipped")
    report = evaluate(
        EvaluateSettings(
            questions="train",
            sampled_answers=2,
            gate=0.9,
            gate_split="unseen value",
            gate_teacher=0.0,
            max_tokens=16,
            concurrency=2,
            context_length=512,
        ),
        dataset,
        "",
        write_student(tmp_path, "SELECT COUNT(name) FROM hotel"),
        None,
        tmp_path / "report",
        None,
    )
    items = read_items(tmp_path / "report")
    assert [item["id"] for item in items] == ["q0", "q1", "q2", "q3", "q4"]
    assert [item["strict"] for item in items] == [True, True, False, False, False]
    assert [item["agreement"] for item in items] == [1.0] * 5
    assert (list(report.systems), report.passed, report.thresholds, report.acceptance_test) == (
        ["student"],
        True,
        [],
        None,
    )
    assert "training data" not in report.groupings
    assert report.name == "answering on training questions"
    assert not (tmp_path / "report" / "acceptance_test").exists()
