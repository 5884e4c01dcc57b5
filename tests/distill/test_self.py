"""A student that is trained on its own verified answers: distill.base_url is self."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from chatmetrics.components.distill.distill import distill
from chatmetrics.components.distill.distilled_dataset import Distillation
from chatmetrics.components.distill.dry_run import estimate
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example, read_examples
from tests.distill.test_distill import dataset, examples

__all__ = ["dataset"]  # a fixture

WRONG, FAILING = "SELECT name FROM item", "SELECT zzz FROM item"


def other(example: Example) -> str:
    """Another query with the result of the gold query."""
    return example.sql.replace("name =", "name LIKE")


def report(folder: Path, answers: Sequence[tuple[Example, list[str]]]) -> Path:
    """A report of evaluate: the greedy answer and sampled ones to each question."""
    folder.mkdir()
    items = [
        {"db_id": "shop", "question": example.question, "predicted": first, "sampled_answers": others, "strict": True}
        for example, (first, *others) in answers
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return folder


def distilled(dataset: Path, answers: Path | None, **settings: object) -> tuple[Distillation, dict[str, str]]:
    """Run the step; returns its summary, and the SQL that is trained on by the example's id."""
    parsed = DistillSettings.model_validate({"base_url": "self", **settings})
    output = dataset.with_name("distilled")
    done = distill(parsed, dataset, output, str(dataset.with_name("ledger")), "", answers, 2)
    return done, {example.id: example.sql for example in read_examples(output / "train.jsonl")}


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Questions 0 to 3: all answers are right, some are, none is, and one needs a repair."""
    certain, unsure, failed, misspelled, *_ = examples("train", 24)
    return report(
        tmp_path / "report",
        [
            (certain, [other(certain)] * 3),
            (unsure, [WRONG, other(unsure), FAILING]),
            (failed, [WRONG, FAILING, "no SQL"]),
            (
                misspelled,
                [misspelled.sql.replace("FROM item", "FROM items").replace("SELECT name", "SELECT namee")] * 3,
            ),
        ],
    )


def test_right_answers_are_trained_on_and_gold_where_there_is_none(dataset: Path, answers: Path) -> None:
    gold = {example.id: example.sql for example in examples("train", 24)}
    certain, unsure, *_ = examples("train", 24)
    done, train = distilled(dataset, answers)
    assert train == {**gold, "train-0": other(certain), "train-1": other(unsure)}
    assert (done.teacher, done.asked, done.round) == ("self", 4, 2)
    assert (done.counts.samples, done.counts.passing) == (12, 4)
    assert done.spending.requests == 0 and done.examples["teacher"] == 2
    card = (dataset.with_name("distilled") / "dataset_card.md").read_text("utf-8")
    assert "Distillation: self, round 2" in card
    assert not (dataset.with_name("distilled") / "teacher.jsonl").exists()


def test_only_answers_to_questions_that_are_sometimes_right(dataset: Path, answers: Path) -> None:
    _, unsure, *_ = examples("train", 24)
    _, train = distilled(dataset, answers, only_unsure=True, gold="never")
    assert train == {"train-1": other(unsure)}
    _, train = distilled(dataset, answers, only_unsure=True, gold="add")
    assert len(train) == 25 and train["train-1#gold"] == unsure.sql and train["train-1"] == other(unsure)


def test_names_are_repaired_before_an_answer_is_verified(dataset: Path, answers: Path) -> None:
    done, train = distilled(dataset, answers, bind_names=True, gold="never")
    assert done.counts.repaired_passing == 3
    assert train["train-3"] == examples("train", 24)[3].sql


def test_a_student_that_was_not_asked_has_nothing_to_learn(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"base_url is self: give the report .* with evaluate.questions=train"):
        distilled(dataset, None)
    (dev, *_) = examples("dev", 1)
    with pytest.raises(InputError, match=r"other: has no answer to any training question of the dataset"):
        distilled(dataset, report(tmp_path / "other", [(dev, [dev.sql])]))
    damaged = report(tmp_path / "damaged", [(dev, [dev.sql])])
    (damaged / "items.jsonl").write_text('{"db_id": "shop", "question": 1}\n')
    with pytest.raises(InputError, match=r"items.jsonl: not a report on a student's answers \('predicted'\)"):
        distilled(dataset, damaged)
    with pytest.raises(InputError, match=r"items.jsonl: not a report"):
        distilled(dataset, tmp_path)


def test_a_dry_run_has_nothing_to_estimate(dataset: Path) -> None:
    with pytest.raises(InputError, match="there is no teacher to pay"):
        estimate(DistillSettings(base_url="self"), dataset, str(dataset.with_name("ledger")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"synthesis": {"questions_per_database": 3}}, "questions without SQL need a teacher"),
        ({"unlabeled_questions": "questions.csv"}, "questions without SQL need a teacher"),
        ({"train_on": "mixture"}, "train_on is mixture"),
        ({"verification": "none"}, "needs verification by execution"),
    ],
)
def test_what_a_student_cannot_teach_itself_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillSettings.model_validate({"base_url": "self", **settings})
